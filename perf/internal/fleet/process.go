package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/procstat"
)

// grace is how long a process may take to end after SIGTERM.
const grace = 5 * time.Second

// Process is a running program.
type Process struct {
	name, log string
	cmd       *exec.Cmd
	told      atomic.Bool // to end, by Stop or Kill
	done      chan struct{}
	err       error // set before done is closed
}

// Start runs a program on h until it ends, is killed or ctx ends. Its output
// is appended to the file log, in whose directory it runs.
func Start(ctx context.Context, h Host, name, log, program string, args ...string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer out.Close() //nolint:errcheck // the process has its own descriptor
	p := &Process{name: name, log: log, cmd: h.Command(ctx, program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = out, out, filepath.Dir(log)
	// Its own group, because Ctrl-C is for us: we end it in order. Killed by
	// the kernel should we die first.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.Cancel = func() error { p.told.Store(true); return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = grace
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		if err := p.cmd.Wait(); !p.told.Load() {
			p.err = fmt.Errorf("%s ended by itself: %w%s", name, orExit0(err), p.tail())
		}
	}()
	return p, nil
}

func orExit0(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// Name returns the name that Start was given.
func (p *Process) Name() string { return p.name }

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns why a process that has ended did so, nil if it was told to.
func (p *Process) Err() error { return p.err }

// Use reads what the process has used so far.
func (p *Process) Use() (procstat.Stat, error) {
	st, err := procstat.Read(p.PID())
	if err != nil {
		return st, fmt.Errorf("%s: %w", p.name, err)
	}
	return st, nil
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() {
	p.told.Store(true)
	_ = p.cmd.Process.Kill() // it may have ended already
	<-p.done
}

// Stop asks the process to end, kills it if it does not within 5 s, and waits
// for its end.
func (p *Process) Stop() {
	p.told.Store(true)
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.Kill()
	}
}

// tail returns the last lines of the log for an error message.
func (p *Process) tail() string {
	const most = 2048
	text, err := os.ReadFile(p.log)
	if err != nil || len(text) == 0 {
		return ""
	}
	if len(text) > most {
		text = text[len(text)-most:]
	}
	return "\n  " + strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "\n  ")
}
