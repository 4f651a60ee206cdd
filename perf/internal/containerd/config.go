package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/damselfly-io/damselfly/internal/containerdbuild"
	"github.com/damselfly-io/damselfly/perf/internal/fleet"
)

// Snapshotter is a snapshotter in a process of its own.
type Snapshotter struct {
	Name    string // containerd's name for it
	Address string // its socket
	Root    string // where its snapshots are
}

// Options say how to run a containerd. All but Snapshotter are required.
type Options struct {
	Host     fleet.Host
	Programs containerdbuild.Programs
	// Dir is for data, log and sockets: its path has room for their names.
	Dir string
	// Registry is the name of the registry in references, Endpoint the URL where
	// it, or a mirror of it, is.
	Registry, Endpoint string
	// Snapshotter is the one to use. Default: overlayfs.
	Snapshotter *Snapshotter
}

const base = `version = 3
root = %q
state = %q
# No CRI; and opt would make /opt/containerd.
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
]
[debug]
  level = "warn"
[grpc]
  address = %q
[ttrpc]
  address = %q
`

const proxy = `[proxy_plugins.%[1]s]
  type = "snapshot"
  address = %[2]q
  [proxy_plugins.%[1]s.exports]
    root = %[3]q
    enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = %[4]q
  snapshotter = %[1]q
`

const hosts = `server = %[1]q
[host.%[1]q]
  capabilities = ["pull", "resolve"]
`

func (o *Options) path(elem ...string) string {
	return filepath.Join(append([]string{o.Dir}, elem...)...)
}

func (o *Options) socket() string { return o.path("c.sock") }

func (o *Options) snapshotter() string {
	if o.Snapshotter == nil {
		return "overlayfs"
	}
	return o.Snapshotter.Name
}

// config returns the text of config.toml.
func (o *Options) config() string {
	var text strings.Builder
	fmt.Fprintf(&text, base, o.path("root"), o.path("state"), o.socket(), o.socket()+".ttrpc")
	if s := o.Snapshotter; s != nil {
		fmt.Fprintf(&text, proxy, s.Name, s.Address, s.Root, "linux/"+runtime.GOARCH)
	}
	return text.String()
}

// maxSocket is the longest path of a socket, its final zero included.
const maxSocket = 108

// write writes the files that containerd and ctr read.
func (o *Options) write() error {
	if longest := o.socket() + ".ttrpc"; len(longest) >= maxSocket {
		return fmt.Errorf("the path %s is too long for a socket: choose a shorter directory", longest)
	}
	dir := o.path("hosts", o.Registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, hosts, o.Endpoint), 0o644); err != nil {
		return err
	}
	return os.WriteFile(o.path("config.toml"), []byte(o.config()), 0o644)
}
