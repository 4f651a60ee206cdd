package snapshotter

import (
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/damselfly-io/damselfly/internal/config"
)

// Config is the configuration of a snapshotter.
type Config struct {
	config.Log

	Address  string `config:"address" default:"/run/damselfly/snapshotter.sock" help:"Unix socket on which containerd reaches the snapshotter."`
	Dfdaemon string `config:"dfdaemon" default:"/run/damselfly/dfdaemon.sock" help:"Unix socket of the node's dfdaemon."`
	Keeper   string `config:"keeper" default:"/run/damselfly/keeper.sock" help:"Unix socket of the keeper, which holds the kernel's files over a restart."`
	HTTP     string `config:"http" default:"127.0.0.1:65006" help:"Address of health and metrics."`
	DataDir  string `config:"data-dir" default:"/var/lib/damselfly/snapshotter" help:"Directory for snapshots, mounts and the content of lazy images. ext4 or xfs, never overlayfs."`
	Backend  string `config:"backend" default:"auto" help:"How lazy images are mounted: erofs, fuse, or auto for the first that a probe finds working."`

	TrustPolicy   string        `config:"trust-policy" default:"" help:"File that says whose indexes are used (docs/trust.md). Empty: those that an image's manifest binds, and those the cluster's supernode has signed."`
	TrustBound    bool          `config:"trust-bound" default:"true" help:"Use indexes that only the image's own manifest vouches for, also those in eStargz and zstd:chunked layers. Set it to false where people who do not trust each other bring images to the same nodes (docs/trust.md)."`
	Lazy          bool          `config:"lazy" default:"true" help:"Mount images that have an index before their content has arrived. Without, every image is pulled; what is mounted stays."`
	Staged        bool          `config:"staged" default:"false" help:"Mount layers lazily also where containerd unpacks in parallel. Only for containerd 2.4 and newer, with the capability rebase in its entry of the snapshotter: older ones would fail such pulls."`
	LookupTimeout time.Duration `config:"lookup-timeout" default:"1s" help:"How long a pull waits for the index of an image; then the image is pulled as usual."`
	LookupKeep    time.Duration `config:"lookup-keep" default:"1m" help:"How long it counts that an image has no index."`

	ReadTimeout time.Duration `config:"read-timeout" default:"2m" help:"How long a read in a lazy image waits for content that cannot be had before it fails with an I/O error."`
	FillMemory  config.Size   `config:"fill-memory" default:"64MiB" unit:"bytes" help:"Limit for content on its way from dfdaemon to devices."`

	Background     bool        `config:"background" default:"true" help:"Complete mounted images in the background."`
	BackgroundRate config.Rate `config:"background-rate" default:"0" unit:"bytes per second" help:"Limit for completing images in the background. 0: half of the rate at which content is seen to come."`
	Prefetch       bool        `config:"prefetch" default:"true" help:"Fetch first what starts of the same image have read on other nodes, and report what they read here."`

	CacheSize    config.Size `config:"cache-size" default:"50GiB" unit:"bytes" help:"Limit of the content of lazy images on this node; what is not mounted goes, least recently used first. 0: no limit."`
	CacheMinFree config.Size `config:"cache-min-free" default:"1GiB" unit:"bytes" help:"Space that the content of lazy images leaves free on its file system."`
}

// KeeperConfig is the configuration of a keeper.
type KeeperConfig struct {
	config.Log

	Address string        `config:"address" default:"/run/damselfly/keeper.sock" help:"Unix socket on which the snapshotter reaches the keeper."`
	Unused  time.Duration `config:"unused" default:"0" help:"End after holding nothing for nobody for this long. 0: never. It is set for the spare keeper that a snapshotter starts where there is no systemd."`
}

// backends are what Config.Backend may be.
var backends = []string{"auto", "erofs", "fuse"}

// Validate checks what the types do not.
func (c *Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.HTTP); err != nil {
		return fmt.Errorf("http: %q is not HOST:PORT", c.HTTP)
	}
	if !slices.Contains(backends, c.Backend) {
		return fmt.Errorf("backend: %q is none of %q", c.Backend, backends)
	}
	switch {
	case c.LookupTimeout <= 0:
		return fmt.Errorf("lookup-timeout: must be more than 0; to mount nothing lazily set lazy to false")
	case c.ReadTimeout <= 0:
		return fmt.Errorf("read-timeout: must be more than 0")
	case c.FillMemory < 32<<20:
		return fmt.Errorf("fill-memory: at least 32MiB are needed: one group can take 17MiB")
	}
	for key, socket := range map[string]string{"address": c.Address, "dfdaemon": c.Dfdaemon, "keeper": c.Keeper} {
		if socket == "" {
			return fmt.Errorf("%s: a path is needed", key)
		}
	}
	return nil
}
