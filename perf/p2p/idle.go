package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// idle is the result of -mode idle: what daemons use when nothing happens.
type idle struct {
	Mode      string  `json:"mode"`
	Machine   machine `json:"machine"`
	Supernode phase   `json:"supernode"`
	Dfdaemons []phase `json:"dfdaemons"`
}

func measureIdle(ctx context.Context, o options, log progress) (_ result, err error) {
	l, err := openLoopback(ctx, o, log, fleet.Supernode, fleet.Dfdaemon)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	nodes := make([]*fleet.Daemon, 0, o.nodes)
	defer func() {
		for _, d := range nodes {
			d.Kill()
		}
	}()
	for i := range o.nodes {
		d, err := l.startNode(ctx, nodeName(i+1))
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, d)
	}
	log("observing for %s", o.settle)
	r := &idle{Mode: o.mode, Machine: thisMachine(), Dfdaemons: make([]phase, o.nodes)}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		r.Supernode, err = observe(ctx, l.supernode.Process, o.settle)
		return err
	})
	for i, d := range nodes {
		group.Go(func() (err error) {
			r.Dfdaemons[i], err = observe(ctx, d.Process, o.settle)
			return err
		})
	}
	return r, group.Wait()
}

func (l *loopback) startNode(ctx context.Context, name string) (*fleet.Daemon, error) {
	free, err := fleet.FreeAddresses(ctx, 3)
	if err != nil {
		return nil, err
	}
	return fleet.StartDfdaemon(ctx, fleet.DfdaemonOptions{
		Host: fleet.Local{}, Program: filepath.Join(l.bin(), fleet.Dfdaemon), Name: name, Supernode: l.grpc,
		HTTP: free[0], Mirror: free[1], Peer: free[2], Dir: filepath.Join(l.dir, name), TokenFile: l.token,
	})
}

func (r *idle) verdict() error { return nil }

func (r *idle) table(w *strings.Builder) {
	row := func(name string, p phase) []string {
		return []string{name, mib(p.RSS), mib(p.PeakRSS), fmt.Sprintf("%.1f", p.CPUPercent)}
	}
	rows := [][]string{row("supernode", r.Supernode)}
	for i, p := range r.Dfdaemons {
		rows = append(rows, row(nodeName(i+1), p))
	}
	printTable(w, []string{"daemon", "RSS MiB", "peak MiB", "CPU %"}, rows)
}
