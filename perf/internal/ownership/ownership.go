// Package ownership names temporary things after the process that made them, so
// that a later process can tell which were left by one that died and remove
// them. What belongs to a process that still runs is never said to be left.
//
// A name is damselfly-KIND-PID-START-REST. The start time is that of the
// process in ticks since boot: process ids come again, pairs of both do not.
package ownership

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/damselfly-io/damselfly/perf/internal/procstat"
)

func kindPrefix(kind string) string { return "damselfly-" + kind + "-" }

// Prefix returns what the names of this process's things of a kind begin with.
// A kind has no dash.
func Prefix(kind string) (string, error) {
	st, err := procstat.Read(os.Getpid())
	if err != nil {
		return "", fmt.Errorf("name things after this process: %w", err)
	}
	return fmt.Sprintf("%s%d-%d-", kindPrefix(kind), os.Getpid(), st.StartTicks), nil
}

// Left picks, out of names, the things of a kind whose process is gone.
func Left(kind string, names []string) []string { return left(kind, names, start) }

func left(kind string, names []string, startOf func(pid int) (uint64, bool)) []string {
	var gone []string
	for _, name := range names {
		pid, started, ok := owner(kind, name)
		if !ok {
			continue
		}
		if now, alive := startOf(pid); !alive || now != started {
			gone = append(gone, name)
		}
	}
	return gone
}

func start(pid int) (uint64, bool) {
	st, err := procstat.Read(pid)
	return st.StartTicks, err == nil
}

// owner reads the process out of a name; ok is false for a name of another
// form.
func owner(kind, name string) (pid int, started uint64, ok bool) {
	rest, ok := strings.CutPrefix(name, kindPrefix(kind))
	if !ok {
		return 0, 0, false
	}
	fields := strings.SplitN(rest, "-", 3)
	if len(fields) != 3 {
		return 0, 0, false
	}
	pid, err := strconv.Atoi(fields[0])
	if err != nil || pid <= 0 {
		return 0, 0, false
	}
	started, err = strconv.ParseUint(fields[1], 10, 64)
	return pid, started, err == nil
}

// TempDir makes a new directory of a kind in parent (default: the system's for
// temporary files), after it has removed those that were left there, and returns
// its absolute path. The caller removes it.
func TempDir(parent, kind string) (string, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	prefix, err := Prefix(kind)
	if err != nil {
		return "", err
	}
	if parent, err = filepath.Abs(parent); err != nil {
		return "", fmt.Errorf("make a temporary directory: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(parent, kindPrefix(kind)+"*"))
	if err != nil {
		return "", fmt.Errorf("look for directories that were left: %w", err)
	}
	for i, name := range names {
		names[i] = filepath.Base(name)
	}
	var errs []error
	for _, name := range Left(kind, names) {
		errs = append(errs, os.RemoveAll(filepath.Join(parent, name)))
	}
	if err := errors.Join(errs...); err != nil {
		return "", fmt.Errorf("remove directories that were left: %w", err)
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return "", fmt.Errorf("make a temporary directory: %w", err)
	}
	return dir, nil
}
