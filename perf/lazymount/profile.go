package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// profile takes CPU profiles of a node's daemons and the supernode for some seconds,
// if that is asked for. end waits for them.
func (n *node) profile(ctx context.Context) (end func(), err error) {
	if n.o.profiles == "" {
		return func() {}, nil
	}
	if err := os.MkdirAll(n.o.profiles, 0o755); err != nil { // #nosec G301 -- nothing secret
		return nil, err
	}
	var wg sync.WaitGroup
	for name, get := range map[string]func(context.Context, string) ([]byte, error){
		"snapshotter": n.snapshotter.Get, "dfdaemon": n.dfdaemon.Get, "supernode": n.supernode.Get,
	} {
		wg.Go(func() {
			data, err := get(ctx, "/debug/pprof/profile?seconds=4")
			if err == nil {
				path := filepath.Join(n.o.profiles, fmt.Sprintf("%s-%s-%s-%s.pprof", name, n.host, n.backend, filepath.Base(n.dir)))
				err = os.WriteFile(path, data, 0o600)
			}
			n.complain(err)
		})
	}
	return wg.Wait, nil
}
