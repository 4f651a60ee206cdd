package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/damselfly-io/damselfly/perf/internal/program"
)

func main() { program.Main(run) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	r, err := measure(ctx, o)
	if ctx.Err() != nil {
		return ctx.Err() // whatever it made fail
	}
	if err != nil {
		return err
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	var text strings.Builder
	r.table(&text)
	_, _ = io.WriteString(stderr, text.String()) // the result is out already
	return nil
}

// mode is a part of the benchmark.
type mode struct {
	name string
	// shaped tells whether links have the rate that is set, or none.
	shaped bool
	run    func(context.Context, *lab, *result) error
}

var modes = []mode{
	{"complete", false, complete},
	{"throughput", true, throughput},
	{"latency", false, latency},
	{"containers", true, containers},
	{"mounts", false, mounts},
	{"second", true, second},
}

// measure is the benchmark.
func measure(ctx context.Context, o *options) (_ *result, err error) {
	s, err := openSite(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	r := newResult(o)
	for _, m := range modes {
		if !slices.Contains(o.modes, m.name) {
			continue
		}
		if err := s.measure(ctx, m, r); err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return r, nil
}

func (s *site) measure(ctx context.Context, m mode, r *result) (err error) {
	s.o.log("%s", m.name)
	rate := s.o.rate
	if !m.shaped {
		rate = 0
	}
	l, err := s.openLab(ctx, rate)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close(ctx)) }()
	return m.run(ctx, l, r)
}
