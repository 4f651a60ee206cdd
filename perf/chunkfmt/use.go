package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// use is what a process used until its end.
type use struct {
	Seconds float64 `json:"seconds"`
	// CPUSeconds of user and system time, PeakRSS of resident memory.
	CPUSeconds float64 `json:"cpu_seconds"`
	PeakRSS    int64   `json:"peak_rss_bytes"`
}

// timed runs a program and returns what it printed and used. It must have no
// output of its own for standard error but messages.
func timed(cmd *exec.Cmd) ([]byte, *use, error) {
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	begin := time.Now()
	out, err := cmd.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("run %s: %w", filepath.Base(cmd.Path), err)
	}
	u := &use{Seconds: time.Since(begin).Seconds(), CPUSeconds: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		u.PeakRSS = usage.Maxrss << 10
	}
	return out, u, nil
}

// medianUse has the medians of the times and the largest memory.
func medianUse(runs []use) use {
	m := use{
		Seconds:    medianOf(runs, func(u use) float64 { return u.Seconds }),
		CPUSeconds: medianOf(runs, func(u use) float64 { return u.CPUSeconds }),
	}
	for _, r := range runs {
		m.PeakRSS = max(m.PeakRSS, r.PeakRSS)
	}
	return m
}

// medianOf returns the median of a figure; of an even number, the upper one.
func medianOf[T any, N cmp.Ordered](all []T, figure func(T) N) N {
	var values []N
	for _, v := range all {
		values = append(values, figure(v))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// percent returns what share of the whole the part is; 0 of nothing.
func percent(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

// mbPerSecond is 0 for no time.
func mbPerSecond(bytes int64, seconds float64) float64 {
	if seconds == 0 {
		return 0
	}
	return float64(bytes) / mb / seconds
}
