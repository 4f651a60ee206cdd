package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/damselfly-io/damselfly/chunkfmt/build"
)

// setting is what a sweep changes.
type setting struct {
	ChunkKiB  int    `json:"chunk_kib"`
	GroupKiB  int    `json:"group_kib"`
	Codec     string `json:"codec"`
	Level     int    `json:"level"` // of zstd
	InlineMax int    `json:"inline_max"`
}

const (
	codecZstd = "zstd"
	codecNone = "none"
)

// defaults are what dfctl uses when nothing is said.
func defaults() setting {
	return setting{
		ChunkKiB: build.DefaultChunkSize >> 10, GroupKiB: build.DefaultGroupSize >> 10,
		Codec: codecZstd, Level: build.DefaultLevel, InlineMax: build.DefaultInlineMax,
	}
}

// codec is the codec with its level.
func (s setting) codec() string {
	if s.Codec == codecZstd {
		return fmt.Sprintf("%s %d", s.Codec, s.Level)
	}
	return s.Codec
}

func (s setting) sizes() string { return fmt.Sprintf("%s / %s", kib(s.ChunkKiB), kib(s.GroupKiB)) }

func kib(n int) string {
	if n >= 1024 {
		return fmt.Sprintf("%dM", n>>10)
	}
	return fmt.Sprintf("%dK", n)
}

func (s setting) String() string {
	return fmt.Sprintf("chunks / groups of %s, %s, files up to %d bytes inline", s.sizes(), s.codec(), s.InlineMax)
}

// args are those of dfctl image convert.
func (s setting) args() []string {
	args := []string{
		"--chunk-size", fmt.Sprintf("%dKiB", s.ChunkKiB), "--group-size", fmt.Sprintf("%dKiB", s.GroupKiB),
		"--codec", s.Codec, "--inline", strconv.Itoa(s.inline()),
	}
	if s.Codec == codecZstd {
		args = append(args, "--level", strconv.Itoa(s.Level))
	}
	return args
}

// inline is what dfctl calls it: 0 would be its default.
func (s setting) inline() int {
	if s.InlineMax == 0 {
		return -1
	}
	return s.InlineMax
}

// settings are the defaults first, and then variations of one thing each.
func settings() []setting {
	all := []setting{defaults()}
	vary := func(change func(*setting)) {
		s := defaults()
		change(&s)
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	for _, size := range [][2]int{{64, 128}, {128, 256}, {256, 512}, {512, 512}, {512, 1024}, {1024, 1024}, {512, 2048}, {1024, 4096}} {
		vary(func(s *setting) { s.ChunkKiB, s.GroupKiB = size[0], size[1] })
	}
	for _, level := range []int{1, 3, 7} {
		vary(func(s *setting) { s.Level = level })
	}
	vary(func(s *setting) { s.Codec, s.Level = codecNone, 0 })
	for _, inline := range []int{0, 128, 512} {
		vary(func(s *setting) { s.InlineMax = inline })
	}
	return all
}

// sweepResult is one image converted with one setting.
type sweepResult struct {
	Image string `json:"image"`
	setting
	conversion
	SizePercent  float64 `json:"size_percent"`
	IndexPercent float64 `json:"index_percent_of_plain"`
	// ColdBytes are those that the start of the image's command must fetch:
	// indexes and groups.
	ColdBytes int64 `json:"cold_start_bytes"`
}

// sweep converts once with each of the settings.
func (o *options) sweep(ctx context.Context, img *subject, with []setting) ([]sweepResult, error) {
	var all []sweepResult
	for i, s := range with {
		o.log("%s: setting %d of %d: %s", img.name, i+1, len(with), s)
		r, err := o.sweepOne(ctx, img, s)
		if err != nil {
			return nil, err
		}
		all = append(all, *r)
	}
	return all, nil
}

func (o *options) sweepOne(ctx context.Context, img *subject, s setting) (*sweepResult, error) {
	to, remove, err := o.tempDir("sweep-")
	if err != nil {
		return nil, err
	}
	defer remove()
	// Layers that could be read in place would show nothing of the setting.
	c, err := o.convertTo(ctx, img.layout, to, append(s.args(), "--new-blobs", "--tag", "sweep")...)
	if err != nil {
		return nil, err
	}
	r := &sweepResult{
		Image: img.name, setting: s, conversion: *c,
		SizePercent: percent(c.stored(), c.ImageBytes), IndexPercent: percent(c.IndexBytes, c.PlainBytes),
	}
	// The layout has only the artifact: what the image's command is stands in
	// the image.
	r.ColdBytes, err = o.coldStart(ctx, "oci:"+to+":sweep")
	return r, err
}
