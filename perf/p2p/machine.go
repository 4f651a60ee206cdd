package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is where the figures come from.
type machine struct {
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

func thisMachine() machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Kernel: "unknown"}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return m
}

// cpuTimes are the machine's processor times since boot, in ticks.
type cpuTimes struct{ idle, all uint64 }

func readCPUTimes() (cpuTimes, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTimes{}, fmt.Errorf("read the machine's processor times: %w", err)
	}
	return parseCPUTimes(string(text))
}

// parseCPUTimes reads the first line of /proc/stat: "cpu", then user, nice,
// system, idle, iowait, irq, softirq, steal and guest times, which are in user
// and nice already.
func parseCPUTimes(text string) (t cpuTimes, err error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	const first, idle, iowait, end = 1, 4, 5, 9
	if len(fields) < end || fields[0] != "cpu" {
		return t, fmt.Errorf("read the machine's processor times: unexpected line %q", line)
	}
	for i := first; i < end; i++ {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return t, fmt.Errorf("read the machine's processor times: %w", err)
		}
		t.all += n
		if i == idle || i == iowait {
			t.idle += n
		}
	}
	return t, nil
}

// idlePercent returns how much of the processors nobody used in between.
func (t cpuTimes) idlePercent(earlier cpuTimes) float64 {
	if t.all == earlier.all {
		return 0
	}
	return 100 * float64(t.idle-earlier.idle) / float64(t.all-earlier.all)
}
