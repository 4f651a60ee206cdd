package fleet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"time"
)

// Host is where processes run and how they are reached.
type Host interface {
	// Command prepares a program to run on the host, as the process itself.
	Command(ctx context.Context, program string, args ...string) *exec.Cmd
	// Dial connects from the host, so that its loopback addresses mean the
	// host's own.
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// Local is the machine itself as a Host.
type Local struct{}

// Command prepares a program to run on this machine.
func (Local) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, program, args...)
}

// Dial connects from this machine.
func (Local) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// readBuffer of the clients: with the transport's default of 4 KiB a large
// download spends its time in system calls.
const readBuffer = 256 << 10

// Client returns an HTTP client whose connections come from the host. It
// follows no environment proxy and asks for no compression.
func Client(h Host) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: h.Dial, DisableCompression: true, ReadBufferSize: readBuffer,
	}}
}

// Get fetches a small document from a URL as seen from the host.
func Get(ctx context.Context, h Host, url string) ([]byte, error) {
	c := Client(h)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	const most = 16 << 20
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return body, fmt.Errorf("get %s: status %s", url, resp.Status)
	}
	return body, nil
}

// AwaitReady polls url, as seen from h, until it answers 200, p ends or ctx
// ends; the latter two are errors.
func AwaitReady(ctx context.Context, h Host, p *Process, url string) error {
	const pause = 50 * time.Millisecond
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		_, err := Get(ctx, h, url)
		if err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return p.Err()
		case <-ctx.Done():
			return fmt.Errorf("wait until %s is ready: %w (last answer: %w)%s", p.Name(), ctx.Err(), err, p.tail())
		case <-tick.C:
		}
	}
}
