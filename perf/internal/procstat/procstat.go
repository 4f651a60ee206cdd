// Package procstat reads what a Linux process has used: processor time and
// memory, from /proc. A reading is of the process itself; time used by its
// children is not in it. A process that has ended cannot be read, not even as
// a zombie for its memory: read it before it is ended.
package procstat

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ticksPerSecond is the unit of /proc's times, USER_HZ. It is 100 on every
// architecture that Go supports.
const ticksPerSecond = 100

// Stat is one reading of a process.
type Stat struct {
	// CPUSeconds of user and system time since the start, in steps of 10 ms;
	// SystemSeconds is the kernel's part.
	CPUSeconds, SystemSeconds float64
	// RSS is the resident memory now, PeakRSS its maximum so far, in bytes,
	// files mapped included.
	RSS, PeakRSS int64
	// StartTicks is when the process started, in ticks since boot; with the
	// process id it names a process uniquely until the machine is restarted.
	StartTicks uint64
}

// Read reads the process with the given id.
func Read(pid int) (Stat, error) {
	var st Stat
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Stat{}, fmt.Errorf("read use of process %d: %w", pid, err)
	}
	if err := st.parseStat(stat); err != nil {
		return Stat{}, fmt.Errorf("read use of process %d: %w", pid, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Stat{}, fmt.Errorf("read use of process %d: %w", pid, err)
	}
	if err := st.parseStatus(status); err != nil {
		return Stat{}, fmt.Errorf("read use of process %d: %w", pid, err)
	}
	return st, nil
}

// parseStat reads /proc/PID/stat. The second field is the program's name in
// parentheses and may itself hold spaces and parentheses; the rest is numbers.
func (s *Stat) parseStat(text []byte) error {
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return fmt.Errorf("stat %q has no program name", text)
	}
	fields := strings.Fields(string(text[end+1:])) // fields[0] is field 3
	const utime, stime, start = 14 - 3, 15 - 3, 22 - 3
	if len(fields) <= start {
		return fmt.Errorf("stat has %d fields after the name, want more than %d", len(fields), start)
	}
	var ticks [3]uint64
	for i, field := range []int{utime, stime, start} {
		n, err := strconv.ParseUint(fields[field], 10, 64)
		if err != nil {
			return fmt.Errorf("field %d of stat: %w", field+3, err)
		}
		ticks[i] = n
	}
	s.CPUSeconds = float64(ticks[0]+ticks[1]) / ticksPerSecond
	s.SystemSeconds = float64(ticks[1]) / ticksPerSecond
	s.StartTicks = ticks[2]
	return nil
}

// parseStatus reads the memory lines of /proc/PID/status. They are missing for
// a zombie, which has no memory.
func (s *Stat) parseStatus(text []byte) error {
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		var field *int64
		switch key {
		case "VmRSS":
			field = &s.RSS
		case "VmHWM":
			field = &s.PeakRSS
		default:
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
		if err != nil {
			return fmt.Errorf("%s of status: %w", key, err)
		}
		*field = kib << 10
	}
	return nil
}
