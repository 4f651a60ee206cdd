package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// containerdConfig keeps a containerd of our own apart from the machine's.
const containerdConfig = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = %q
[ttrpc]
  address = %q
`

// ready is how long containerd may take to start.
const ready = 30 * time.Second

const (
	peerImage     = "peer.test/image:latest"
	peerConverted = "peer.test/image:estargz"
)

// peerConversion is one run of ctr-remote image convert. Processor time and
// memory are those of the client, which does the work; what containerd spends
// on handing it the content and storing the result is left out, in its favour.
type peerConversion struct {
	use
	LayerBytes int64 `json:"layer_bytes"` // of the new image
}

// peer is a containerd of our own.
type peer struct {
	ctr     string // ctr-remote
	dir     string // for data
	run     string // for sockets, whose paths are short
	process *fleet.Process
}

// convertByPeer imports a layout into a containerd of our own and measures
// ctr-remote's conversion to eStargz, once: it takes long.
func (o *options) convertByPeer(ctx context.Context, layout string) (_ *peerConversion, err error) {
	dir, remove, err := o.tempDir("peer-")
	if err != nil {
		return nil, err
	}
	defer remove()
	run, err := os.MkdirTemp("", "peer-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(run)) }()
	p := &peer{ctr: o.peer, dir: dir, run: run}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	defer p.process.Stop()
	return p.convert(ctx, layout)
}

func (p *peer) socket() string { return filepath.Join(p.run, "c.sock") }

func (p *peer) start(ctx context.Context) (err error) {
	config := filepath.Join(p.dir, "config.toml")
	text := fmt.Sprintf(containerdConfig, filepath.Join(p.dir, "root"), filepath.Join(p.run, "state"), p.socket(), p.socket()+".ttrpc")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	p.process, err = fleet.Start(ctx, fleet.Local{}, "containerd", filepath.Join(p.dir, "log"), "containerd", "-c", config)
	if err != nil {
		return err
	}
	if err := p.await(ctx); err != nil {
		p.process.Stop()
		return err
	}
	return nil
}

// await returns when containerd answers.
func (p *peer) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ready, fmt.Errorf("containerd was not ready after %v", ready))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		// Without a socket, the client would wait for it.
		if _, err := os.Stat(p.socket()); err == nil {
			if _, err := p.call(ctx, "version"); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.process.Done():
			return p.process.Err()
		case <-tick.C:
		}
	}
}

func (p *peer) convert(ctx context.Context, layout string) (*peerConversion, error) {
	archive := filepath.Join(p.dir, "image.tar")
	if out, err := exec.CommandContext(ctx, "tar", "-C", layout, "-cf", archive, ".").CombinedOutput(); err != nil { // #nosec G702 -- the user names the image
		return nil, fmt.Errorf("pack %s: %w: %s", layout, err, out)
	}
	if _, err := p.call(ctx, "images", "import", "--no-unpack", "--base-name", "peer.test/image", archive); err != nil {
		return nil, err
	}
	_, used, err := timed(p.command(ctx, "images", "convert", "--estargz", "--oci", peerImage, peerConverted))
	if err != nil {
		return nil, err
	}
	c := &peerConversion{use: *used}
	c.LayerBytes, err = p.layerBytes(ctx)
	return c, err
}

// layerBytes returns the size of the converted image's layers.
func (p *peer) layerBytes(ctx context.Context) (sum int64, err error) {
	list, err := p.call(ctx, "images", "list", "name=="+peerConverted)
	if err != nil {
		return 0, err
	}
	for _, word := range strings.Fields(list) {
		if !strings.HasPrefix(word, "sha256:") {
			continue
		}
		text, err := p.call(ctx, "content", "get", word)
		if err != nil {
			return 0, err
		}
		var m v1.Manifest
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			return 0, fmt.Errorf("read the converted manifest: %w", err)
		}
		for _, l := range m.Layers {
			sum += l.Size
		}
		return sum, nil
	}
	return 0, fmt.Errorf("containerd does not list %s", peerConverted)
}

func (p *peer) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, p.ctr, append([]string{"-a", p.socket()}, args...)...)
}

// call returns what the client printed.
func (p *peer) call(ctx context.Context, args ...string) (string, error) {
	var failure strings.Builder
	cmd := p.command(ctx, args...)
	cmd.Stderr = &failure
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(p.ctr), args[0], err, strings.TrimSpace(failure.String()))
	}
	return string(out), nil
}
