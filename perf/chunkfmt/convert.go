package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/debimage"
)

// grace is how long dfctl may take to end when told to.
const grace = 10 * time.Second

// conversion is one run of dfctl image convert, or the median of several.
type conversion struct {
	use

	ImageBytes int64 `json:"image_bytes"` // the image's own layers
	TarBytes   int64 `json:"tar_bytes"`   // of them, unpacked
	PlainBytes int64 `json:"plain_bytes"` // of the files in them
	IndexBytes int64 `json:"index_bytes"`
	BlobBytes  int64 `json:"blob_bytes"` // new ones
	// MBPerCore is the tar's megabytes by the processor seconds.
	MBPerCore float64 `json:"tar_mb_per_cpu_second"`
}

// stored is what the registry holds besides the image.
func (c *conversion) stored() int64 { return c.IndexBytes + c.BlobBytes }

// convertResult compares the conversions of one image.
type convertResult struct {
	Image     string     `json:"image"`
	Damselfly conversion `json:"damselfly"`
	// FromTar converts the same image with layers that are not compressed, so
	// that unpacking them takes no time.
	FromTar conversion `json:"damselfly_from_tar"`
	// SizePercent is index and blobs by the image's layers.
	SizePercent  float64 `json:"size_percent"`
	IndexPercent float64 `json:"index_percent_of_plain"`
	// Peer is ctr-remote's conversion to eStargz, Speedup its time by ours.
	Peer    *peerConversion `json:"peer,omitempty"`
	Speedup float64         `json:"speedup,omitempty"`
}

// nextResult is what the next version of an image costs.
type nextResult struct {
	Image        string  `json:"image"`
	Percent      int     `json:"percent_of_files_changed"`
	First        int64   `json:"first_bytes"` // index and blobs of the first version
	Next         int64   `json:"next_bytes"`  // added by the next, with the first as dictionary
	NextIndex    int64   `json:"next_index_bytes"`
	Alone        int64   `json:"alone_bytes"` // the next without dictionary
	ExtraPercent float64 `json:"extra_percent"`
}

// compare converts with dfctl and with the peer.
func (o *options) compare(ctx context.Context, img *subject) (*convertResult, error) {
	o.log("%s: converting, %d times", img.name, o.repeat)
	c, err := o.convert(ctx, img.layout)
	if err != nil {
		return nil, err
	}
	tars, remove, err := o.plainLayout(img)
	if err != nil {
		return nil, err
	}
	defer remove()
	o.log("%s: converting from layers that are not compressed, %d times", img.name, o.repeat)
	fromTar, err := o.convert(ctx, tars)
	if err != nil {
		return nil, err
	}
	r := &convertResult{
		Image: img.name, Damselfly: *c, FromTar: *fromTar,
		SizePercent: percent(c.stored(), c.ImageBytes), IndexPercent: percent(c.IndexBytes, c.PlainBytes),
	}
	if o.peer == "" {
		return r, nil
	}
	o.log("%s: converting with %s, once", img.name, o.peer)
	if r.Peer, err = o.convertByPeer(ctx, img.layout); err != nil {
		return nil, err
	}
	r.Speedup = r.Peer.Seconds / c.Seconds
	return r, nil
}

// plainLayout makes the image with layers that are not compressed. It is not
// kept: it is large and quickly made.
func (o *options) plainLayout(img *subject) (string, func(), error) {
	dir, remove, err := o.tempDir("tar-")
	if err != nil {
		return "", nil, err
	}
	to := filepath.Join(dir, "layout")
	if err := debimage.Plain(img.layout, to); err != nil {
		remove()
		return "", nil, err
	}
	return to, remove, nil
}

// convert converts several times and returns medians.
func (o *options) convert(ctx context.Context, layout string) (*conversion, error) {
	var last *conversion
	var uses []use
	for range o.repeat {
		var err error
		if last, err = o.convertOnce(ctx, layout); err != nil {
			return nil, err
		}
		uses = append(uses, last.use)
	}
	last.use = medianUse(uses)
	last.MBPerCore = mbPerSecond(last.TarBytes, last.CPUSeconds)
	return last, nil
}

// convertOnce leaves nothing behind.
func (o *options) convertOnce(ctx context.Context, layout string, args ...string) (*conversion, error) {
	to, remove, err := o.tempDir("converted-")
	if err != nil {
		return nil, err
	}
	defer remove()
	return o.convertTo(ctx, layout, to, args...)
}

// convertTo converts into the layout to, with temporary files in the work
// directory as well: not every machine's /tmp is a disk.
func (o *options) convertTo(ctx context.Context, layout, to string, args ...string) (*conversion, error) {
	args = append([]string{
		"image", "convert", "oci:" + layout + ":latest", "--to", "oci:" + to, "--work-dir", o.work, "-o", "json",
	}, args...)
	out, used, err := timed(o.command(ctx, args...))
	if err != nil {
		return nil, err
	}
	var report struct {
		Images []conversion `json:"images"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return nil, fmt.Errorf("read what dfctl printed: %w", err)
	}
	c := &conversion{use: *used}
	for _, i := range report.Images {
		c.ImageBytes += i.ImageBytes
		c.TarBytes += i.TarBytes
		c.PlainBytes += i.PlainBytes
		c.IndexBytes += i.IndexBytes
		c.BlobBytes += i.BlobBytes
	}
	c.MBPerCore = mbPerSecond(c.TarBytes, c.CPUSeconds)
	o.log("  %.1f s, %.1f s of processors, %.0f MiB, %.1f %% of the layers' size", c.Seconds, c.CPUSeconds, float64(c.PeakRSS)/mib, percent(c.stored(), c.ImageBytes))
	return c, nil
}

// measureNext converts an image and its next version, in which some files have
// changed.
func (o *options) measureNext(ctx context.Context, img *subject) (*nextResult, error) {
	const changed = 5
	r := &nextResult{Image: img.name, Percent: changed}
	next := img.variant(o.imageDir(), fmt.Sprintf("next%d", changed))
	o.log("%s: making a version with %d %% of the files changed, unless it is there", img.name, changed)
	if err := debimage.Next(ctx, img.layout, next, changed); err != nil {
		return nil, err
	}
	o.log("%s: converting it, and that version alone and with a dictionary", img.name)
	first, remove, err := o.tempDir("first-")
	if err != nil {
		return nil, err
	}
	defer remove()
	c, err := o.convertTo(ctx, img.layout, first, "--tag", "first")
	if err != nil {
		return nil, err
	}
	r.First = c.stored()
	if c, err = o.convertOnce(ctx, next); err != nil {
		return nil, err
	}
	r.Alone = c.stored()
	if c, err = o.convertOnce(ctx, next, "--dictionary", "oci:"+first+":first"); err != nil {
		return nil, err
	}
	r.Next, r.NextIndex = c.stored(), c.IndexBytes
	r.ExtraPercent = percent(r.Next, r.First)
	return r, nil
}

// command runs dfctl with a signing key of the benchmark's own, which it makes on
// first use: a dictionary must be trusted.
func (o *options) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, o.dfctl, args...) // #nosec G702 -- built from this checkout
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Dir(o.dfctl))
	// Told to end, it removes its temporary files.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = grace
	return cmd
}

// coldStart asks dfctl what a start of the image's command fetches.
func (o *options) coldStart(ctx context.Context, ref string) (int64, error) {
	out, _, err := timed(o.command(ctx, "image", "inspect", ref, "-o", "json"))
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
	return dir, func() { _ = os.RemoveAll(dir) }, err // #nosec G703 -- made by MkdirTemp
}
