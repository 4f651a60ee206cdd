package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/damselfly-io/damselfly/chunkfmt"
	"github.com/damselfly-io/damselfly/chunkfmt/erofs"
)

// openCommand is the first argument of the process that is measured.
const openCommand = "open-image"

// metadataResult is what it takes to make an image mountable whose indexes are
// there: medians over the runs, the largest for memory.
type metadataResult struct {
	Files       int     `json:"files"`
	Entries     int     `json:"entries"`
	IndexBytes  int64   `json:"index_bytes"`
	PlainBytes  int64   `json:"plain_bytes"`
	DecodeMS    float64 `json:"decode_ms"`
	MergeMS     float64 `json:"merge_ms"`
	EROFSMS     float64 `json:"erofs_ms"`
	TotalMS     float64 `json:"total_ms"`
	HeapBytes   int64   `json:"heap_bytes"`
	ImageBytes  int64   `json:"image_bytes"`
	IndexShare  float64 `json:"index_percent"`
	BytesPerOne float64 `json:"index_bytes_per_file"`
}

// measureMetadata makes an image with this many files and opens it in
// processes of its own, on one processor.
func (o *options) measureMetadata(ctx context.Context, files int) (_ *metadataResult, err error) {
	dir, err := os.MkdirTemp(o.work, "metadata-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &metadataResult{Files: files}
	names, err := r.write(dir, files)
	if err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var runs []metadataResult
	for range max(o.repeat, 1) {
		cmd := exec.CommandContext(ctx, program, append([]string{openCommand, filepath.Join(dir, "image")}, names...)...)
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("open an image of %d files: %w", files, err)
		}
		var run metadataResult
		if err := json.Unmarshal(out, &run); err != nil {
			return nil, fmt.Errorf("read the figures of %d files: %w", files, err)
		}
		runs = append(runs, run)
	}
	r.summarize(runs)
	return r, nil
}

// write encodes the layers and returns the files' names.
func (r *metadataResult) write(dir string, files int) ([]string, error) {
	layers, err := newSynthesis(512<<10, 1<<20).image(files)
	if err != nil {
		return nil, err
	}
	var names []string
	for i, x := range layers {
		p, err := chunkfmt.Encode(x)
		if err != nil {
			return nil, err
		}
		name := filepath.Join(dir, fmt.Sprintf("layer%d", i))
		if err := os.WriteFile(name, p, 0o600); err != nil {
			return nil, err
		}
		names = append(names, name)
		r.IndexBytes += int64(len(p))
		for n := range x.Inodes {
			if x.Kind(uint32(n)) == chunkfmt.File { //nolint:gosec // fewer than 1<<32
				r.PlainBytes += x.Inodes[n].Size
			}
		}
	}
	r.IndexShare = 100 * float64(r.IndexBytes) / float64(r.PlainBytes)
	r.BytesPerOne = float64(r.IndexBytes) / float64(files)
	return names, nil
}

func (r *metadataResult) summarize(runs []metadataResult) {
	middle := func(of func(metadataResult) float64) float64 {
		var all []float64
		for _, run := range runs {
			all = append(all, of(run))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	r.DecodeMS = middle(func(m metadataResult) float64 { return m.DecodeMS })
	r.MergeMS = middle(func(m metadataResult) float64 { return m.MergeMS })
	r.EROFSMS = middle(func(m metadataResult) float64 { return m.EROFSMS })
	r.TotalMS = middle(func(m metadataResult) float64 { return m.TotalMS })
	for _, run := range runs {
		r.HeapBytes = max(r.HeapBytes, run.HeapBytes)
		r.ImageBytes, r.Entries = run.ImageBytes, run.Entries
	}
}

// openImage is the measured process: it does what a node does between the
// indexes' arrival and the mount, once, and prints the figures.
func openImage(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: " + openCommand + " IMAGE INDEX...")
	}
	var files [][]byte
	for _, name := range args[1:] {
		p, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		files = append(files, p)
	}
	var r metadataResult
	begin := time.Now()
	var layers []*chunkfmt.Tree
	for i, p := range files {
		x, err := chunkfmt.Decode(p, chunkfmt.Limits{})
		if err != nil {
			return err
		}
		layers = append(layers, &x.Tree)
		files[i] = nil
	}
	decoded := time.Now()
	tree, err := chunkfmt.Merge(layers...)
	if err != nil {
		return err
	}
	layers = nil
	merged := time.Now()
	if r.ImageBytes, err = writeImage(args[0], tree); err != nil {
		return err
	}
	end := time.Now()
	ms := func(from, to time.Time) float64 { return float64(to.Sub(from).Microseconds()) / 1000 }
	r.DecodeMS, r.MergeMS, r.EROFSMS, r.TotalMS = ms(begin, decoded), ms(decoded, merged), ms(merged, end), ms(begin, end)
	r.Entries = len(tree.Entries)
	// What the process has taken from the kernel for its heap, which it never
	// gives back during so short a life.
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	r.HeapBytes = int64(mem.HeapSys) //nolint:gosec // memory fits
	return json.NewEncoder(os.Stdout).Encode(r)
}

func writeImage(name string, tree *chunkfmt.Tree) (size int64, err error) {
	f, err := os.Create(name)
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
