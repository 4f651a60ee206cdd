package dfdaemon

import (
	"fmt"
	"net"
	"os"
	"time"

	"github.com/damselfly-io/damselfly/internal/config"
)

// Config is the configuration of a dfdaemon.
type Config struct {
	config.Log

	Supernode []string `config:"supernode" default:"127.0.0.1:8002" help:"Supernodes, HOST:PORT, tried in order."`
	Mirror    string   `config:"mirror" default:"127.0.0.1:65001" help:"Address of the registry mirror. Keep it on loopback: it is plain HTTP."`
	Peer      string   `config:"peer" default:"127.0.0.1:65002" help:"Address that serves pieces to other nodes, which must be able to reach it."`
	HTTP      string   `config:"http" default:"127.0.0.1:65003" help:"Address of health and metrics."`
	Proxy     string   `config:"proxy" default:"" help:"Address of the forward proxy for files, for instance 127.0.0.1:65004. Empty: no proxy."`
	Socket    string   `config:"socket" default:"/run/damselfly/dfdaemon.sock" help:"Unix socket for dfctl and the snapshotter; only the daemon's user may open it."`
	DataDir   string   `config:"data-dir" default:"/var/lib/damselfly/dfdaemon" help:"Directory for the cache and the grants. ext4 or xfs."`

	Name        string `config:"name" default:"" help:"Name of this node, unique in the cluster. Empty: the host name."`
	Zone        string `config:"zone" default:"" help:"Zone of this node; content enters each zone about once."`
	Rack        string `config:"rack" default:"" help:"Rack of this node within its zone."`
	PeerAddress string `config:"peer-address" default:"" help:"Address that other nodes use for this one, HOST:PORT. Empty: the peer address, or, if that has no host, the one the supernode sees."`

	JoinTokenFile string `config:"join-token-file" default:"" help:"File with the cluster's join token."`

	AllowRegistry []string `config:"allow-registry" default:"docker.io" help:"Registries that may be mirrored, HOST or HOST=URL of the upstream."`
	ProxyRules    []string `config:"proxy-rule" default:"" help:"Regular expressions of plain-HTTP URLs that the proxy fetches through the swarm; all else is passed on untouched."`
	DockerConfig  string   `config:"docker-config" default:"" help:"Docker config.json (or a mounted .dockerconfigjson) with credentials for reads that were authorized earlier."`

	CacheSize    config.Size `config:"cache-size" default:"50GiB" unit:"bytes" help:"Limit of the cache; the least recently used content goes first. 0: no limit."`
	CacheMinFree config.Size `config:"cache-min-free" default:"1GiB" unit:"bytes" help:"Space that the cache leaves free on its file system."`

	UploadRate     config.Rate `config:"upload-rate" default:"0" unit:"bytes per second" help:"Limit for sending pieces to other nodes, in all. 0: no limit."`
	UploadPeerRate config.Rate `config:"upload-peer-rate" default:"0" unit:"bytes per second" help:"Limit for sending pieces to one node. 0: no limit."`
	UploadSlots    int         `config:"upload-slots" default:"64" help:"Pieces sent at a time; requests beyond that wait in order of priority."`

	AuthTTL       time.Duration `config:"auth-ttl" default:"60s" help:"How long the registry's yes to a client's credential counts for a repository."`
	GrantTTL      time.Duration `config:"grant-ttl" default:"168h" help:"How long what a client was let into is served while its registry is down, since its last use."`
	OriginTimeout time.Duration `config:"origin-timeout" default:"30s" help:"How long an origin may send nothing before the request is repeated."`
	OriginGrace   time.Duration `config:"origin-grace" default:"2s" help:"How long a lost supernode is waited for before this node reads what it lacks from the origin itself."`
	OriginReads   int           `config:"origin-reads" default:"4" help:"Reads from origins at a time while no supernode is reachable."`
	Linger        time.Duration `config:"linger" default:"10s" help:"How long a download goes on after its last client has gone."`
}

// Validate checks what the types do not.
func (c *Config) Validate() error {
	addresses := map[string]string{"mirror": c.Mirror, "peer": c.Peer, "http": c.HTTP}
	if c.Proxy != "" {
		addresses["proxy"] = c.Proxy
	}
	for key, addr := range addresses {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("%s: %q is not HOST:PORT", key, addr)
		}
	}
	for _, addr := range c.Supernode {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("supernode: %q is not HOST:PORT", addr)
		}
	}
	switch {
	case len(c.Supernode) == 0:
		return fmt.Errorf("supernode: at least one address is needed")
	case c.UploadSlots < 8:
		return fmt.Errorf("upload-slots: %d is too few: below 8 the swarm slows down", c.UploadSlots)
	case c.OriginReads < 1:
		return fmt.Errorf("origin-reads: must be at least 1")
	case len(c.ProxyRules) > 0 && c.Proxy == "":
		return fmt.Errorf("proxy-rule: has no effect without proxy")
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("name: not set, and the host name is unknown: %w", err)
		}
		c.Name = host
	}
	return nil
}
