package main

import (
	"context"
	"fmt"
	"strconv"
)

// sweepResult is one image converted with one set of options.
type sweepResult struct {
	Image     string `json:"image"`
	ChunkKiB  int64  `json:"chunk_kib"`
	GroupKiB  int64  `json:"group_kib"`
	Codec     string `json:"codec"`
	Level     int    `json:"level"`
	InlineMax int    `json:"inline_max"`
	conversion
	MBPerCore    float64 `json:"tar_mb_per_cpu_second"`
	SizePercent  float64 `json:"size_percent"`
	IndexPercent float64 `json:"index_percent_of_plain"`
	// ColdBytes are those that the start of the image's command must fetch:
	// indexes and groups.
	ColdBytes int64 `json:"cold_start_bytes"`
}

// sweep converts with sizes, codecs and levels around the defaults.
func (o *options) sweep(ctx context.Context, name, layout string) ([]sweepResult, error) {
	var all []sweepResult
	for _, s := range sweeps() {
		s.Image = name
		o.log("converting %s: chunks of %d KiB, groups of %d KiB, %s level %d, inline to %d", name, s.ChunkKiB, s.GroupKiB, s.Codec, s.Level, s.InlineMax)
		if err := o.sweepOne(ctx, &s, layout); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func sweeps() []sweepResult {
	usual := sweepResult{ChunkKiB: 512, GroupKiB: 1024, Codec: "zstd", Level: 1, InlineMax: 128}
	var all []sweepResult
	for _, size := range [][2]int64{{64, 128}, {128, 256}, {256, 256}, {256, 512}, {256, 1024}, {512, 512}, {512, 1024}, {1024, 1024}, {512, 2048}, {1024, 4096}} {
		s := usual
		s.ChunkKiB, s.GroupKiB = size[0], size[1]
		all = append(all, s)
	}
	for _, level := range []int{3, 7} {
		s := usual
		s.Level = level
		all = append(all, s)
	}
	for _, inline := range []int{-1, 64, 512} {
		s := usual
		s.InlineMax = inline
		all = append(all, s)
	}
	s := usual
	s.Codec = "none"
	return append(all, s)
}

func (o *options) sweepOne(ctx context.Context, s *sweepResult, layout string) error {
	to, remove, err := o.tempDir("sweep-")
	if err != nil {
		return err
	}
	defer remove()
	args := []string{
		"--tag", "sweep", "--chunk-size", fmt.Sprintf("%dKiB", s.ChunkKiB), "--group-size", fmt.Sprintf("%dKiB", s.GroupKiB),
		"--codec", s.Codec, "--inline", strconv.Itoa(s.InlineMax),
	}
	if s.Codec == "zstd" {
		args = append(args, "--level", strconv.Itoa(s.Level))
	}
	c, err := o.convertTo(ctx, layout, to, args...)
	if err != nil {
		return err
	}
	s.conversion = *c
	s.MBPerCore = float64(c.TarBytes) / 1e6 / c.CPUSeconds
	s.SizePercent = 100 * float64(c.IndexBytes+c.BlobBytes) / float64(c.ImageBytes)
	s.IndexPercent = 100 * float64(c.IndexBytes) / float64(c.PlainBytes)
	s.ColdBytes, err = o.coldStart(ctx, "oci:"+to+":sweep")
	return err
}
