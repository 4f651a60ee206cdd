package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/build"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
)

// First arguments of the processes that make and open synthetic images, in the
// directory in which they run. Both are processes of their own: the one because it is measured, the other because
// the peak memory that the kernel reports of a child is never less than what
// its parent had.
const (
	makeCommand = "make-indexes"
	openCommand = "open-image"
)

var errOwnUse = errors.New(makeCommand + " is for the benchmark's own use")

func layerFile(i int) string { return fmt.Sprintf("layer%d", i) }

// synthetic are the indexes of a synthetic image.
type synthetic struct {
	IndexBytes int64 `json:"index_bytes"`
	PlainBytes int64 `json:"plain_bytes"` // of the files
}

// opened is what it took to make an image mountable whose indexes are there.
type opened struct {
	Entries    int     `json:"entries"`
	DecodeMS   float64 `json:"decode_ms"`
	MergeMS    float64 `json:"merge_ms"`
	EROFSMS    float64 `json:"erofs_ms"`
	TotalMS    float64 `json:"total_ms"`
	CPUMS      float64 `json:"cpu_ms"`
	HeapBytes  int64   `json:"heap_bytes"`
	PeakRSS    int64   `json:"peak_rss_bytes"` // of the whole process
	ImageBytes int64   `json:"image_bytes"`
}

// metadataResult has the medians over the runs, for memory the largest.
type metadataResult struct {
	Files      int   `json:"files"`
	IndexBytes int64 `json:"index_bytes"`
	PlainBytes int64 `json:"plain_bytes"`
	opened
	IndexPercent float64 `json:"index_percent_of_plain"`
	BytesPerFile float64 `json:"index_bytes_per_file"`
}

// measureMetadata makes an image with this many files and opens it in
// processes of its own, on one processor.
func (o *options) measureMetadata(ctx context.Context, files int) (*metadataResult, error) {
	dir, remove, err := o.tempDir("metadata-")
	if err != nil {
		return nil, err
	}
	defer remove()
	o.log("opening an image of %d files", files)
	var s synthetic
	if _, err := self(ctx, dir, &s, makeCommand, strconv.Itoa(files)); err != nil {
		return nil, fmt.Errorf("make indexes of %d files: %w", files, err)
	}
	var runs []opened
	for range o.repeat {
		var run opened
		used, err := self(ctx, dir, &run, openCommand)
		if err != nil {
			return nil, fmt.Errorf("open an image of %d files: %w", files, err)
		}
		run.CPUMS, run.PeakRSS = used.CPUSeconds*1000, used.PeakRSS
		runs = append(runs, run)
	}
	return &metadataResult{
		Files: files, IndexBytes: s.IndexBytes, PlainBytes: s.PlainBytes, opened: medianOpened(runs),
		IndexPercent: percent(s.IndexBytes, s.PlainBytes), BytesPerFile: float64(s.IndexBytes) / float64(files),
	}, nil
}

// self runs this program in dir on one processor and reads the JSON that it
// prints.
func self(ctx context.Context, dir string, v any, args ...string) (*use, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, args...) // #nosec G702 -- this program
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	out, used, err := timed(cmd)
	if err != nil {
		return nil, err
	}
	return used, json.Unmarshal(out, v)
}

func medianOpened(runs []opened) opened {
	m := runs[0]
	m.DecodeMS = medianOf(runs, func(r opened) float64 { return r.DecodeMS })
	m.MergeMS = medianOf(runs, func(r opened) float64 { return r.MergeMS })
	m.EROFSMS = medianOf(runs, func(r opened) float64 { return r.EROFSMS })
	m.TotalMS = medianOf(runs, func(r opened) float64 { return r.TotalMS })
	m.CPUMS = medianOf(runs, func(r opened) float64 { return r.CPUMS })
	for _, r := range runs {
		m.HeapBytes, m.PeakRSS = max(m.HeapBytes, r.HeapBytes), max(m.PeakRSS, r.PeakRSS)
	}
	return m
}

// makeIndexes writes the indexes of a synthetic image and prints what they are.
func makeIndexes(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errOwnUse
	}
	files, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	layers, err := newSynthesis(build.DefaultChunkSize, build.DefaultGroupSize).image(files)
	if err != nil {
		return err
	}
	var s synthetic
	for i, x := range layers {
		p, err := chunkfmt.Encode(x)
		if err != nil {
			return err
		}
		if err := os.WriteFile(layerFile(i), p, 0o600); err != nil {
			return err
		}
		s.IndexBytes += int64(len(p))
		for n := range x.Inodes {
			if x.Kind(uint32(n)) == chunkfmt.File {
				s.PlainBytes += x.Inodes[n].Size
			}
		}
	}
	return json.NewEncoder(out).Encode(s)
}

// openImage is the measured process: it does what a node does between the
// indexes' arrival and the mount, once, and prints the figures.
func openImage(out io.Writer) error {
	var files [][]byte
	for i := range syntheticLayers {
		p, err := os.ReadFile(layerFile(i))
		if err != nil {
			return err
		}
		files = append(files, p)
	}
	var r opened
	begin := time.Now()
	layers, err := decode(files)
	if err != nil {
		return err
	}
	decoded := time.Now()
	tree, err := chunkfmt.Merge(layers...)
	if err != nil {
		return err
	}
	merged := time.Now()
	if r.ImageBytes, err = writeImage(tree); err != nil {
		return err
	}
	end := time.Now()
	ms := func(from, to time.Time) float64 { return float64(to.Sub(from).Microseconds()) / 1000 }
	r.DecodeMS, r.MergeMS, r.EROFSMS, r.TotalMS = ms(begin, decoded), ms(decoded, merged), ms(merged, end), ms(begin, end)
	r.Entries = len(tree.Entries)
	// What the heap was at its largest: the part of the address space that it
	// has ever used, which the collector never shrinks.
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	r.HeapBytes = int64(mem.HeapSys) //nolint:gosec // memory fits
	return json.NewEncoder(out).Encode(r)
}

// decode frees each file once it is decoded.
func decode(files [][]byte) ([]*chunkfmt.Tree, error) {
	var layers []*chunkfmt.Tree
	for i, p := range files {
		x, err := chunkfmt.Decode(p, chunkfmt.Limits{})
		if err != nil {
			return nil, err
		}
		layers = append(layers, &x.Tree)
		files[i] = nil
	}
	return layers, nil
}

func writeImage(tree *chunkfmt.Tree) (size int64, err error) {
	f, err := os.Create("image")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 256<<10)
	image, err := erofs.Write(w, tree, erofs.Options{})
	if err != nil {
		return 0, err
	}
	return image.Size, w.Flush()
}
