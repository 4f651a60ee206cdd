package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/debimage"
)

// conversion is one run of dfctl image convert.
type conversion struct {
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
	PeakRSS    int64   `json:"peak_rss_bytes"`

	ImageBytes int64 `json:"image_bytes"` // the image's own layers
	TarBytes   int64 `json:"tar_bytes"`   // of them, unpacked
	IndexBytes int64 `json:"index_bytes"`
	BlobBytes  int64 `json:"blob_bytes"` // new ones
	PlainBytes int64 `json:"plain_bytes"`
}

// convertResult compares the conversions of one image.
type convertResult struct {
	Image string `json:"image"`
	// Damselfly has the medians of the runs.
	Damselfly conversion `json:"damselfly"`
	// MBPerCore is the tar's megabytes by the processor seconds.
	MBPerCore float64 `json:"tar_mb_per_cpu_second"`
	// SizePercent is index and blobs by the image's layers.
	SizePercent  float64 `json:"size_percent"`
	IndexPercent float64 `json:"index_percent_of_plain"`
	// Peer is ctr-remote's conversion to eStargz, Speedup its time by ours.
	Peer    *conversion `json:"peer,omitempty"`
	Speedup float64     `json:"speedup,omitempty"`
}

// nextResult is what the next version of an image costs.
type nextResult struct {
	Image        string  `json:"image"`
	Percent      int     `json:"percent_of_files_changed"`
	First        int64   `json:"first_bytes"` // index and blobs of the first version
	Next         int64   `json:"next_bytes"`  // added by the next, with the first as dictionary
	Alone        int64   `json:"alone_bytes"` // the next without dictionary
	ExtraPercent float64 `json:"extra_percent"`
}

// compare converts with dfctl and with the peer.
func (o *options) compare(ctx context.Context, name, layout string) (*convertResult, error) {
	o.log("converting %s", name)
	c, err := o.convert(ctx, layout, o.repeat)
	if err != nil {
		return nil, err
	}
	r := &convertResult{
		Image: name, Damselfly: *c,
		MBPerCore:    float64(c.TarBytes) / 1e6 / c.CPUSeconds,
		SizePercent:  100 * float64(c.IndexBytes+c.BlobBytes) / float64(c.ImageBytes),
		IndexPercent: 100 * float64(c.IndexBytes) / float64(c.PlainBytes),
	}
	if o.peer == "" {
		return r, nil
	}
	o.log("converting %s with %s", name, o.peer)
	if r.Peer, err = o.convertByPeer(ctx, layout); err != nil {
		return nil, err
	}
	r.Speedup = r.Peer.Seconds / c.Seconds
	return r, nil
}

// convert runs dfctl image convert several times and returns medians.
func (o *options) convert(ctx context.Context, layout string, repeat int, args ...string) (*conversion, error) {
	var runs []conversion
	for range repeat {
		c, err := o.convertOnce(ctx, layout, args...)
		if err != nil {
			return nil, err
		}
		runs = append(runs, *c)
	}
	return median(runs), nil
}

func median(runs []conversion) *conversion {
	m := runs[0]
	var wall, cpu []float64
	for _, r := range runs {
		wall, cpu = append(wall, r.Seconds), append(cpu, r.CPUSeconds)
		m.PeakRSS = max(m.PeakRSS, r.PeakRSS)
	}
	slices.Sort(wall)
	slices.Sort(cpu)
	m.Seconds, m.CPUSeconds = wall[len(wall)/2], cpu[len(cpu)/2]
	return &m
}

func (o *options) convertOnce(ctx context.Context, layout string, args ...string) (*conversion, error) {
	to, remove, err := o.tempDir("converted-")
	if err != nil {
		return nil, err
	}
	defer remove()
	return o.convertTo(ctx, layout, to, args...)
}

func (o *options) convertTo(ctx context.Context, layout, to string, args ...string) (*conversion, error) {
	args = append([]string{"image", "convert", "oci:" + layout + ":latest", "--to", "oci:" + to, "--no-sign", "-o", "json"}, args...)
	out, c, err := timed(ctx, o.dfctl, args...)
	if err != nil {
		return nil, err
	}
	var report struct {
		Images []struct {
			ImageBytes int64 `json:"image_bytes"`
			TarBytes   int64 `json:"tar_bytes"`
			PlainBytes int64 `json:"plain_bytes"`
			IndexBytes int64 `json:"index_bytes"`
			BlobBytes  int64 `json:"blob_bytes"`
		} `json:"images"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return nil, fmt.Errorf("read what dfctl printed: %w", err)
	}
	for _, i := range report.Images {
		c.ImageBytes += i.ImageBytes
		c.TarBytes += i.TarBytes
		c.PlainBytes += i.PlainBytes
		c.IndexBytes += i.IndexBytes
		c.BlobBytes += i.BlobBytes
	}
	return c, nil
}

// timed runs a program and returns what it printed and used.
func timed(ctx context.Context, program string, args ...string) ([]byte, *conversion, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = os.Stderr
	begin := time.Now()
	out, err := cmd.Output()
	if err != nil {
		return nil, nil, fmt.Errorf("run %s: %w", filepath.Base(program), err)
	}
	c := &conversion{Seconds: time.Since(begin).Seconds(), CPUSeconds: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		c.PeakRSS = usage.Maxrss << 10
	}
	return out, c, nil
}

// measureNext converts an image and its next version, in which some files have
// changed.
func (o *options) measureNext(ctx context.Context, name, layout string) (*nextResult, error) {
	const percent = 5
	r := &nextResult{Image: name, Percent: percent}
	next, err := o.nextLayout(ctx, layout, percent)
	if err != nil {
		return nil, err
	}
	o.log("converting %s and a version of it with %d %% of the files changed", name, percent)
	first, remove, err := o.tempDir("first-")
	if err != nil {
		return nil, err
	}
	defer remove()
	c, err := o.convertTo(ctx, layout, first, "--tag", "first")
	if err != nil {
		return nil, err
	}
	r.First = c.IndexBytes + c.BlobBytes
	if c, err = o.convertOnce(ctx, next); err != nil {
		return nil, err
	}
	r.Alone = c.IndexBytes + c.BlobBytes
	if c, err = o.convertOnce(ctx, next, "--dictionary", "oci:"+first+":first"); err != nil {
		return nil, err
	}
	r.Next = c.IndexBytes + c.BlobBytes
	r.ExtraPercent = 100 * float64(r.Next) / float64(r.First)
	return r, nil
}

func (o *options) nextLayout(ctx context.Context, layout string, percent uint32) (string, error) {
	dir := filepath.Join(o.work, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	to := filepath.Join(dir, fmt.Sprintf("%s-next%d", filepath.Base(layout), percent))
	return to, debimage.Next(ctx, layout, to, percent)
}

// coldStart asks dfctl what a start of the image's command fetches.
func (o *options) coldStart(ctx context.Context, ref string) (int64, error) {
	out, _, err := timed(ctx, o.dfctl, "image", "inspect", ref, "-o", "json")
	if err != nil {
		return 0, err
	}
	var report struct {
		ColdStart *struct {
			GroupBytes int64 `json:"group_bytes"`
			IndexBytes int64 `json:"index_bytes"`
		} `json:"cold_start"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return 0, fmt.Errorf("read what dfctl printed: %w", err)
	}
	if report.ColdStart == nil {
		return 0, fmt.Errorf("%s: the image names no command", ref)
	}
	return report.ColdStart.GroupBytes + report.ColdStart.IndexBytes, nil
}

// tempDir makes a directory in the work directory.
func (o *options) tempDir(pattern string) (string, func(), error) {
	dir, err := os.MkdirTemp(o.work, pattern)
	// A leftover in the work directory does no harm.
	return dir, func() { _ = os.RemoveAll(dir) }, err
}
