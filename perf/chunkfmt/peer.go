package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// containerdConfig keeps a containerd of our own apart from the machine's.
const containerdConfig = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = %q
`

// ready is how long containerd may take to start.
const ready = 30 * time.Second

// convertByPeer imports a layout into a containerd of our own and measures
// ctr-remote's conversion to eStargz, once: it takes long. Its time is that of
// the client, which does the work.
func (o *options) convertByPeer(ctx context.Context, layout string) (_ *conversion, err error) {
	dir, err := os.MkdirTemp(o.work, "peer-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Paths of sockets are short.
	run, err := os.MkdirTemp("", "peer-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(run)) }()
	socket := filepath.Join(run, "c.sock")
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf(containerdConfig, filepath.Join(dir, "root"), filepath.Join(run, "state"), socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	containerd, err := fleet.Start(ctx, fleet.Local{}, "containerd", filepath.Join(dir, "log"), "containerd", "-c", config)
	if err != nil {
		return nil, err
	}
	defer containerd.Stop()
	if err := await(ctx, containerd.Done(), socket); err != nil {
		return nil, err
	}
	archive := filepath.Join(dir, "image.tar")
	if err := plain(ctx, "tar", "-C", layout, "-cf", archive, "."); err != nil {
		return nil, err
	}
	if err := plain(ctx, o.peer, "-a", socket, "images", "import", "--no-unpack", "--base-name", "peer.test/image", archive); err != nil {
		return nil, err
	}
	_, c, err := timed(ctx, o.peer, "-a", socket, "images", "convert", "--estargz", "--oci", "peer.test/image:latest", "peer.test/image:estargz")
	return c, err
}

// await returns when the socket is there.
func await(ctx context.Context, ended <-chan struct{}, socket string) error {
	deadline := time.NewTimer(ready)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(socket); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			return errors.New("containerd ended")
		case <-deadline.C:
			return fmt.Errorf("containerd was not ready after %v", ready)
		case <-tick.C:
		}
	}
}

func plain(ctx context.Context, program string, args ...string) error {
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, strings.TrimSpace(string(out)))
	}
	return nil
}
