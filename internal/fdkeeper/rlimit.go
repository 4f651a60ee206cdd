package fdkeeper

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// RaiseFileLimit lets this process have at least want descriptors open, as far
// as it may: without CAP_SYS_RESOURCE up to the hard limit, with it up to
// fs.nr_open. It returns the limit in force, also with an error, and never
// lowers it.
func RaiseFileLimit(want uint64) (uint64, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read limit of open files: %w", err)
	}
	if limit.Cur >= want {
		return limit.Cur, nil
	}
	most, err := nrOpen()
	if err != nil {
		return limit.Cur, err
	}
	want = min(want, most)
	if want > limit.Max {
		raised := unix.Rlimit{Cur: want, Max: want}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
			return want, nil
		}
		want = limit.Max
	}
	if want <= limit.Cur {
		return limit.Cur, nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: limit.Max}); err != nil {
		return limit.Cur, fmt.Errorf("raise limit of open files to %d: %w", want, err)
	}
	return want, nil
}

func nrOpen() (uint64, error) {
	b, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return 0, fmt.Errorf("read most open files of a process: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read most open files of a process: %w", err)
	}
	return n, nil
}
