package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/damselfly-io/damselfly/perf/internal/fleet"
	"github.com/damselfly-io/damselfly/perf/internal/netlab"
	"github.com/damselfly-io/damselfly/perf/internal/objectserver"
	"github.com/damselfly-io/damselfly/perf/internal/ownership"
)

// Addresses within the lab's hosts, where every host has its own ports.
const (
	httpAddr   = "127.0.0.1:65003"
	mirrorAddr = "127.0.0.1:65001"
	proxyAddr  = "127.0.0.1:65004"
	grpcPort   = "8002"
	seedPort   = "8003"
	peerPort   = "65002"
	originPort = "5000"

	// registry is the name under which the nodes' mirrors know the origin.
	registry   = "bench.test"
	repository = "bench"
)

// Names of the lab's hosts besides the nodes.
const (
	originHost    = "origin"
	supernodeHost = "supernode"
	liarHost      = "liar"
)

// site is what lasts through all runs of a benchmark: the lab, the binaries,
// the objects and the origin that serves them.
type site struct {
	o      options
	log    progress
	dir    string
	lab    *netlab.Lab
	origin *fleet.Process
}

// openSite builds the daemons and makes the lab and the origin. close undoes
// it.
func openSite(ctx context.Context, o options, log progress) (_ *site, err error) {
	if os.Geteuid() != 0 {
		return nil, netlab.ErrNotRoot
	}
	s := &site{o: o, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if s.dir, err = ownership.TempDir(o.dir, "p2p"); err != nil {
		return nil, err
	}
	log("building the daemons")
	if err = fleet.Build(ctx, s.dir, fleet.Supernode, fleet.Dfdaemon); err != nil {
		return nil, err
	}
	if err = os.Mkdir(s.objects(), 0o755); err != nil {
		return nil, fmt.Errorf("make a directory for the content: %w", err)
	}
	log("making a lab of %d nodes with links of %s", o.nodes, o.rate)
	if s.lab, err = netlab.Up(ctx, netlab.Options{Rate: o.rate, Hosts: o.hosts()}); err != nil {
		return nil, err
	}
	s.origin, err = s.startServer(ctx, originHost, s.originAddr())
	return s, err
}

// hosts returns the hosts of the lab: nodes in turns in zones 1 to -zones.
func (o options) hosts() []netlab.HostSpec {
	hosts := []netlab.HostSpec{{Name: originHost}, {Name: supernodeHost}}
	if o.liar {
		hosts = append(hosts, netlab.HostSpec{Name: liarHost})
	}
	for i := 1; i <= o.nodes; i++ {
		h := netlab.HostSpec{Name: nodeName(i)}
		if o.zones > 0 {
			h.Zone = (i-1)%o.zones + 1
		}
		hosts = append(hosts, h)
	}
	return hosts
}

func nodeName(i int) string { return "node" + strconv.Itoa(i) }

func (s *site) program(name string) string { return filepath.Join(s.dir, name) }

func (s *site) objects() string { return filepath.Join(s.dir, "objects") }

func (s *site) originAddr() string { return s.at(originHost, originPort) }

// at returns the address of a port of a host.
func (s *site) at(host, port string) string {
	return s.lab.Host(host).Address().String() + ":" + port
}

// startServer runs an object server as a process on a host.
func (s *site) startServer(ctx context.Context, host, addr string) (*fleet.Process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start the origin: %w", err)
	}
	p, err := fleet.Start(ctx, s.lab.Host(host), "object server", filepath.Join(s.dir, host+".log"), exe, serveCommand, s.objects(), addr)
	if err != nil {
		return nil, err
	}
	if err := fleet.AwaitReady(ctx, s.lab.Host(host), p, "http://"+addr+"/v2/"); err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

// close ends the origin and removes lab and data.
func (s *site) close(ctx context.Context) error {
	if s.origin != nil {
		s.origin.Kill()
	}
	var errs []error
	if s.lab != nil {
		errs = append(errs, s.lab.Close(ctx))
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir)) // #nosec G703 -- made by MkdirTemp
	}
	return errors.Join(errs...)
}

// originStats reads the origin's counters.
func (s *site) originStats(ctx context.Context) (objectserver.Stats, error) {
	var st objectserver.Stats
	text, err := fleet.Get(ctx, s.lab.Host(originHost), "http://"+s.originAddr()+"/stats")
	if err == nil {
		err = json.Unmarshal(text, &st)
	}
	if err != nil {
		return st, fmt.Errorf("read the origin's counters: %w", err)
	}
	return st, nil
}

// checkSpace refuses a run whose data does not fit the file system.
func (s *site) checkSpace(bytes int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return fmt.Errorf("look for free space in %s: %w", s.dir, err)
	}
	const reserve = 2 << 30
	if free := int64(fs.Bavail) * fs.Bsize; free < bytes+reserve { // #nosec G115 -- bytes of a real file system
		return fmt.Errorf("the run writes %d MiB but %s has %d MiB free: choose fewer nodes, a smaller -size or another -dir", bytes>>20, s.dir, free>>20)
	}
	return nil
}

// cluster is a supernode with its nodes, fresh for each run.
type cluster struct {
	site      *site
	dir       string
	token     string // file
	supernode *fleet.Daemon
	nodes     []*fleet.Daemon
}

func (s *site) startCluster(ctx context.Context) (_ *cluster, err error) {
	c := &cluster{site: s, nodes: make([]*fleet.Daemon, s.o.nodes)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.dir, err = os.MkdirTemp(s.dir, "cluster-"); err != nil {
		return nil, fmt.Errorf("make a directory for the cluster: %w", err)
	}
	if c.token, err = fleet.WriteToken(c.dir); err != nil {
		return nil, err
	}
	if c.supernode, err = c.startSupernode(ctx); err != nil {
		return nil, err
	}
	const atOnce = 8
	var group errgroup.Group // not of its context: the daemons outlive it
	group.SetLimit(atOnce)
	for i := range c.nodes {
		group.Go(func() (err error) {
			c.nodes[i], err = c.startNode(ctx, i+1)
			return err
		})
	}
	return c, group.Wait()
}

func (c *cluster) startSupernode(ctx context.Context) (*fleet.Daemon, error) {
	return fleet.StartSupernode(ctx, fleet.SupernodeOptions{
		Host: c.site.lab.Host(supernodeHost), Program: c.site.program(fleet.Supernode),
		HTTP: httpAddr, GRPC: c.site.at(supernodeHost, grpcPort), Peer: c.site.at(supernodeHost, seedPort),
		Dir: filepath.Join(c.dir, supernodeHost), TokenFile: c.token,
	})
}

func (c *cluster) startNode(ctx context.Context, i int) (*fleet.Daemon, error) {
	name := nodeName(i)
	o := fleet.DfdaemonOptions{
		Host: c.site.lab.Host(name), Program: c.site.program(fleet.Dfdaemon), Name: name,
		Supernode: c.site.at(supernodeHost, grpcPort),
		HTTP:      httpAddr, Mirror: mirrorAddr, Peer: c.site.at(name, peerPort), Proxy: proxyAddr, ProxyRules: []string{"^http://" + regexp.QuoteMeta(c.site.originAddr()) + "/files/"},
		Dir: filepath.Join(c.dir, name), TokenFile: c.token,
		Registries: []string{registry + "=http://" + c.site.originAddr()},
	}
	if z := c.site.o.zones; z > 0 {
		o.Zone = "zone" + strconv.Itoa((i-1)%z+1)
	}
	return fleet.StartDfdaemon(ctx, o)
}

// close kills the daemons and removes their data.
func (c *cluster) close() error {
	for _, d := range append(c.nodes, c.supernode) {
		if d != nil {
			d.Kill()
		}
	}
	if c.dir == "" {
		return nil
	}
	return os.RemoveAll(c.dir) // #nosec G703 -- made by MkdirTemp
}

// mirrorURL is where a node's mirror has the object.
func mirrorURL(digest string) string {
	return "http://" + mirrorAddr + "/v2/" + repository + "/blobs/" + digest + "?ns=" + registry
}

// originURL is where the origin has the object as a blob.
func (s *site) originURL(digest string) string {
	return "http://" + s.originAddr() + "/v2/" + repository + "/blobs/" + digest
}

// fileURL is where the origin has the object as a plain file.
func (s *site) fileURL(digest string) string { return "http://" + s.originAddr() + "/files/" + digest }
