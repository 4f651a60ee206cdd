package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// A work is done below a root, and returns how much was done: bytes read, or
// operations. The same work is done below each root.
type work func(ctx context.Context, root string) (amount float64, err error)

// readThrough reads files from begin to end, size bytes at a time.
func readThrough(files []entry, size int) work {
	return func(ctx context.Context, root string) (float64, error) {
		buf := make([]byte, size)
		total := 0.0
		for _, e := range files {
			n, err := readFile(ctx, filepath.Join(root, e.path), buf)
			if err == nil && n != e.size {
				err = fmt.Errorf("%s has %d bytes, want %d", e.path, n, e.size)
			}
			if err != nil {
				return 0, err
			}
			total += float64(n)
		}
		return total, nil
	}
}

func readFile(ctx context.Context, path string, buf []byte) (total int64, err error) {
	f, err := os.Open(path) // #nosec G304 -- of the image
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	for {
		n, err := f.Read(buf)
		total += int64(n)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return total, err
		}
	}
}

// readAnywhere makes reads of size bytes at places all over some files, the same
// ones each time.
func readAnywhere(files []entry, size, reads int) work {
	return func(ctx context.Context, root string) (float64, error) {
		open := make([]*os.File, len(files))
		for i, e := range files {
			f, err := os.Open(filepath.Join(root, e.path)) // #nosec G304 -- of the image
			if err != nil {
				return 0, err
			}
			defer f.Close() //nolint:errcheck // only read
			open[i] = f
		}
		random := rand.New(rand.NewPCG(1, 2)) // #nosec G404 -- to be the same each time
		buf := make([]byte, size)
		total := 0.0
		for range reads {
			i := random.IntN(len(open))
			blocks := max(1, (files[i].size-int64(size))/4096)
			n, err := open[i].ReadAt(buf, random.Int64N(blocks)*4096)
			if err != nil && !errors.Is(err, io.EOF) {
				return 0, err
			}
			total += float64(n)
		}
		return total, ctx.Err()
	}
}

// statAll looks at all entries.
func statAll(t *tree) work {
	return func(ctx context.Context, root string) (float64, error) {
		var st unix.Stat_t
		for _, name := range t.entries {
			if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
				return 0, fmt.Errorf("lstat %s: %w", name, err)
			}
		}
		return float64(len(t.entries)), ctx.Err()
	}
}

// find runs find(1), which reads all directories.
func find(t *tree) work {
	return func(ctx context.Context, root string) (float64, error) {
		err := quietly(exec.CommandContext(ctx, "find", root, "-name", "no such name"))
		return float64(len(t.entries)), err
	}
}

// execute runs a program of the image some times.
func execute(times int, program string, args ...string) work {
	return func(ctx context.Context, root string) (float64, error) {
		for range times {
			cmd := exec.CommandContext(ctx, program, args...) // #nosec G204 -- of the image
			cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: root}
			if err := quietly(cmd); err != nil {
				return 0, err
			}
		}
		return float64(times), nil
	}
}
