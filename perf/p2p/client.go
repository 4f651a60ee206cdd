package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// download is one request of a client and what came of it.
type download struct {
	host   fleet.Host
	url    string
	proxy  string // HOST:PORT of a forward proxy, or ""
	digest string // to check the content against, or ""
	size   int64
	half   func() // called once half of the content has arrived; may be nil

	got atomic.Int64 // bytes so far
	buf []byte
}

// sample is what one download took.
type sample struct {
	TTFB    float64 `json:"ttfb_seconds"` // until the first byte of the body
	Seconds float64 `json:"seconds"`      // until the last
	Bytes   int64   `json:"bytes"`
}

// clientBuffer is the size of the clients' reads.
const clientBuffer = 256 << 10

// run downloads. The time starts now.
func (d *download) run(ctx context.Context) (sample, error) {
	client := fleet.Client(d.host)
	defer client.CloseIdleConnections()
	if d.proxy != "" {
		transport, ok := client.Transport.(*http.Transport)
		if !ok {
			return sample{}, fmt.Errorf("download: client has a transport of another kind")
		}
		transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: d.proxy})
	}
	return d.with(ctx, client)
}

// with is run over connections that may exist already.
func (d *download) with(ctx context.Context, client *http.Client) (sample, error) {
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil) // #nosec G704 -- the benchmark's own address
	if err != nil {
		return sample{}, fmt.Errorf("download: %w", err)
	}
	resp, err := client.Do(req) // #nosec G704 -- the benchmark's own address
	if err != nil {
		return sample{}, fmt.Errorf("download: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // as far as it goes
		return sample{}, fmt.Errorf("download %s: %s: %s", d.url, resp.Status, text)
	}
	return d.read(resp.Body, start)
}

func (d *download) read(body io.Reader, start time.Time) (s sample, err error) {
	if d.buf == nil {
		d.buf = make([]byte, clientBuffer)
	}
	sum := sha256.New()
	for {
		n, err := body.Read(d.buf)
		if n > 0 && s.Bytes == 0 {
			s.TTFB = time.Since(start).Seconds()
		}
		if d.half != nil && s.Bytes < d.size/2 && s.Bytes+int64(n) >= d.size/2 {
			d.half()
		}
		s.Bytes += int64(n)
		d.got.Store(s.Bytes)
		if d.digest != "" {
			sum.Write(d.buf[:n])
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return s, fmt.Errorf("download %s: after %d bytes: %w", d.url, s.Bytes, err)
		}
	}
	s.Seconds = time.Since(start).Seconds()
	if s.Bytes != d.size {
		return s, fmt.Errorf("download %s: %d bytes, want %d", d.url, s.Bytes, d.size)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); d.digest != "" && got != d.digest {
		return s, fmt.Errorf("download %s: content has digest %s", d.url, got)
	}
	return s, nil
}
