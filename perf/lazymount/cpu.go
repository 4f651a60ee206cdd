package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

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

// idlePercent returns how much of the processors nobody used since.
func (t cpuTimes) idlePercent() (float64, error) {
	now, err := readCPUTimes()
	if err != nil || now.all == t.all {
		return 0, err
	}
	return 100 * float64(now.idle-t.idle) / float64(now.all-t.all), nil
}

// cpu returns the processor time that a node's daemons have used, in seconds.
func (n *node) cpu() (float64, error) {
	total := 0.0
	for _, p := range []*fleet.Process{n.dfdaemon.Process, n.snapshotter.Process} {
		use, err := p.Use()
		if err != nil {
			return 0, err
		}
		total += use.CPUSeconds
	}
	return total, nil
}
