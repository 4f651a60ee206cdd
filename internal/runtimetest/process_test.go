package runtimetest

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

// process is a program that runs until it is told to end, or its test ends.
type process struct {
	name string
	log  string // file with what it prints
	proc *os.Process
	done chan struct{} // closed when it has ended
}

// start runs a program. Its output is added to the file log, and shown if the
// test fails.
func start(t *testing.T, name, log, path string, args ...string) *process {
	t.Helper()
	return startCommand(t, name, log, exec.Command(path, args...))
}

// startCommand runs a command that has not been started.
func startCommand(t *testing.T, name, log string, cmd *exec.Cmd) *process {
	t.Helper()
	_, err := os.Stat(log)
	again := err == nil // the first start shows what all have printed
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	// The kernel ends it should this process die without its cleanups.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p := &process{name: name, log: log, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig is about the thread that starts the process: it must live as
		// long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		p.proc = cmd.Process
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed or not: the test knows which
		}
		_ = out.Close()
		close(p.done)
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() && !again {
			t.Logf("%s:\n%s", name, tail(log))
		}
	})
	return p
}

// tail returns the last lines of a log.
func tail(log string) string {
	const most = 8 << 10
	b, err := os.ReadFile(log)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-most):]))
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends the process with SIGKILL.
func (p *process) kill() {
	_ = p.proc.Kill() // it may have ended already
	<-p.done
}

// stop asks the process to end, and kills it if it does not.
func (p *process) stop() {
	timer := time.AfterFunc(10*time.Second, func() { _ = p.proc.Kill() })
	defer timer.Stop()
	_ = p.proc.Signal(syscall.SIGTERM) // it may have ended already
	<-p.done
}

// awaitHTTP waits until url answers 200.
func (p *process) awaitHTTP(t *testing.T, url string) {
	t.Helper()
	testenv.Eventually(t, func() bool {
		if p.ended() {
			t.Fatalf("%s has ended:\n%s", p.name, tail(p.log))
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, p.name+" answers at "+url)
}

// command runs a program to its end and returns what it printed.
func command(ctx context.Context, path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// shortDir makes a directory whose path leaves room for the names of sockets
// in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dfrt-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func subdir(t *testing.T, elem ...string) string {
	t.Helper()
	dir := filepath.Join(elem...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

var ports struct {
	mu    sync.Mutex
	taken map[string]bool
}

// freeAddress returns a loopback address that nobody listens on and that no
// other call has returned.
func freeAddress(t *testing.T) string {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	if ports.taken == nil {
		ports.taken = map[string]bool{}
	}
	for {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		_ = l.Close() // nothing was accepted
		if !ports.taken[addr] {
			ports.taken[addr] = true
			return addr
		}
	}
}
