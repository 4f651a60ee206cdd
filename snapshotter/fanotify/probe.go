package fanotify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	probeSize  = 1 << 20
	probeOff   = 512 << 10
	probeLen   = 4096
	probeByte  = 0xD5
	probeLimit = 10 * time.Second
)

// errProbe is what the probe's handler refuses with.
var errProbe = errors.New("this read is to fail")

// Probe tells whether files in dir can be served: it makes a sparse file there,
// reads it as another program would, and fills what the kernel asks for. nil
// means that the reader got the right bytes and, where the handler failed, EIO.
// Otherwise the error says what is missing and wraps ErrPrivilege, ErrKernel,
// ErrFilesystem or ErrGroups where one of them is the reason. It takes ten
// seconds at most and leaves nothing in dir.
func Probe(ctx context.Context, dir string) (err error) {
	writer, err := os.CreateTemp(dir, ".fanotify-probe-*")
	if err != nil {
		return fmt.Errorf("probe fanotify: %w", err)
	}
	defer func() {
		err = errors.Join(err, writer.Close(), os.Remove(writer.Name()))
	}()
	if err := writer.Truncate(probeSize); err != nil {
		return fmt.Errorf("probe fanotify: %w", err)
	}
	w, err := New(Options{})
	if err != nil {
		return fmt.Errorf("probe fanotify: %w", err)
	}
	if err := w.Mark(writer); err != nil {
		return fmt.Errorf("probe fanotify: %w", errors.Join(err, w.Close()))
	}
	if err := probeReads(ctx, w, writer); err != nil {
		return fmt.Errorf("probe fanotify in %s: %w", dir, err)
	}
	return nil
}

// probeReads serves one reader, and closes w.
func probeReads(ctx context.Context, w *Watch, writer *os.File) error {
	ctx, stop := context.WithTimeout(ctx, probeLimit)
	defer stop()
	content := bytes.Repeat([]byte{probeByte}, probeLen)
	reader := make(chan error, 1)
	go func() {
		defer stop()
		reader <- probeReader(writer.Name(), content)
	}()
	err := w.Serve(ctx, func(_ context.Context, off, n int64) error {
		if off > probeOff || off+n < probeOff+probeLen {
			return errProbe
		}
		_, err := writer.WriteAt(content, probeOff)
		return err
	})
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = errors.Join(err, ctx.Err())
	}
	// Closing first: it lets a reader go on that waits in vain.
	return errors.Join(err, w.Close(), <-reader)
}

// probeReader reads a range that is filled and one that is refused.
func probeReader(path string, content []byte) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	got := make([]byte, len(content))
	if _, err := f.ReadAt(got, probeOff); err != nil {
		return fmt.Errorf("read what was filled: %w", err)
	}
	if !bytes.Equal(got, content) {
		return fmt.Errorf("a read did not wait until its range was filled: %w", ErrFilesystem)
	}
	if _, err := f.ReadAt(got[:1], 0); !errors.Is(err, unix.EIO) {
		return fmt.Errorf("a refused read ended with %v: %w", err, ErrKernel) //nolint:errorlint // may be nil
	}
	return nil
}
