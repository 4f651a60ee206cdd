package supernode

import (
	"fmt"
	"net"
	"os"
	"time"

	"github.com/damselfly-io/damselfly/internal/config"
)

// Config is the configuration of a supernode.
type Config struct {
	config.Log

	HTTP string `config:"http" default:"127.0.0.1:8001" help:"Address of the management API, health and metrics."`
	GRPC string `config:"grpc" default:"127.0.0.1:8002" help:"Address that daemons connect to."`
	Peer string `config:"peer" default:"127.0.0.1:8003" help:"Address that serves pieces to daemons."`

	Name    string `config:"name" default:"" help:"Name of this supernode among the peers; must differ from every node's. Empty: supernode- and the host name."`
	DataDir string `config:"data-dir" default:"/var/lib/damselfly/supernode" help:"Directory for the cache and the state."`

	JoinTokenFile string `config:"join-token-file" default:"" help:"File with the token that daemons must present. Without it only daemons on this machine are accepted."`
	APITokenFile  string `config:"api-token-file" default:"" help:"File with the bearer token for the management API. Without it only clients on this machine are accepted."`

	CacheSize    config.Size `config:"cache-size" default:"100GiB" unit:"bytes" help:"Limit of the cache; the least recently used content goes first. 0: no limit."`
	CacheMinFree config.Size `config:"cache-min-free" default:"1GiB" unit:"bytes" help:"Space that the cache leaves free on its file system."`

	UploadRate     config.Rate `config:"upload-rate" default:"0" unit:"bytes per second" help:"Limit for sending pieces, in all. 0: no limit."`
	UploadPeerRate config.Rate `config:"upload-peer-rate" default:"0" unit:"bytes per second" help:"Limit for sending pieces to one node. 0: no limit."`
	UploadSlots    int         `config:"upload-slots" default:"64" help:"Pieces sent at a time; requests beyond that wait in order of priority."`

	OriginParallel int           `config:"origin-parallel" default:"4" help:"Requests to the origin at a time for one content, if the origin serves ranges."`
	OriginSegment  config.Size   `config:"origin-segment" default:"16MiB" unit:"bytes" help:"How much one request to the origin asks for."`
	OriginTimeout  time.Duration `config:"origin-timeout" default:"30s" help:"How long an origin may send nothing before the request is repeated."`
	DockerConfig   string        `config:"docker-config" default:"" help:"Docker config.json (or a mounted .dockerconfigjson) with credentials for preheats and for reads that were authorized earlier."`
	Registries     []string      `config:"registry" default:"" help:"Upstream of a registry for preheats, HOST=URL. Others: https://HOST, or http on loopback."`

	AccelerateRepositories []string    `config:"accelerate-repository" default:"" help:"Repositories whose images are made lazy when they are first pulled: HOST/REPO, HOST/PREFIX/* or HOST/*."`
	AccelerateWorkers      int         `config:"accelerate-workers" default:"1" help:"Images that are converted at a time."`
	AccelerateMemory       config.Size `config:"accelerate-memory" default:"192MiB" unit:"bytes" help:"Memory that one conversion may take for its buffers."`
	AcceleratePush         bool        `config:"accelerate-push" default:"false" help:"Also push indexes to the image's repository, with the credentials of docker-config."`

	AuthTTL    time.Duration `config:"auth-ttl" default:"60s" help:"How long the registry's yes to a credential counts for a repository."`
	TagTTL     time.Duration `config:"tag-ttl" default:"5s" help:"How long a tag is not asked for again."`
	MaxParents int           `config:"max-parents" default:"24" help:"Peers that one node fetches a content from, at most."`
	TicketTTL  time.Duration `config:"ticket-ttl" default:"1h" help:"How long a node may fetch from its parents without hearing from the supernode."`
	Quarantine time.Duration `config:"quarantine" default:"10m" help:"How long a node that sent bad bytes is left out."`
}

// Validate checks what the types do not.
func (c *Config) Validate() error {
	for key, addr := range map[string]string{"http": c.HTTP, "grpc": c.GRPC, "peer": c.Peer} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fmt.Errorf("%s: %q is not HOST:PORT", key, addr)
		}
	}
	if c.UploadSlots < 1 || c.OriginParallel < 1 || c.OriginSegment < 1<<20 || c.MaxParents < 2 {
		return fmt.Errorf("upload-slots and origin-parallel must be at least 1, max-parents 2, origin-segment 1MiB")
	}
	if c.AccelerateWorkers < 1 || c.AccelerateMemory < 32<<20 {
		return fmt.Errorf("accelerate-workers must be at least 1, accelerate-memory 32MiB")
	}
	if c.AcceleratePush && c.DockerConfig == "" {
		return fmt.Errorf("accelerate-push needs docker-config, which has the credentials to push with")
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("name: not set, and the host name is unknown: %w", err)
		}
		c.Name = "supernode-" + host
	}
	return nil
}
