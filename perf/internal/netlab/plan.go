package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
)

// HostSpec describes a host of the lab.
type HostSpec struct {
	// Name of the host: lower-case letters, digits and dashes, at most 32.
	Name string
	// Zone is the host's zone from 1 up, or 0 for the core.
	Zone int
}

// Options describe a lab.
type Options struct {
	// Rate of every host's link in each direction; 0: unshaped.
	Rate Rate
	// Hosts, at most 60,000.
	Hosts []HostSpec
}

const (
	network  = "10.77.0.0/16"
	maxHosts = 60000
	maxZones = 1000
	// burst and latency of the token buckets: a burst is a few of the largest
	// segments that TCP hands down, the queue is as long as a shallow switch's.
	burst   = "256kb"
	latency = "50ms"
)

var hostName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// switchName is the namespace of the bridges; no host can have it.
const switchName = "SWITCH"

func (o Options) validate() error {
	if len(o.Hosts) == 0 || len(o.Hosts) > maxHosts {
		return fmt.Errorf("a lab has 1 to %d hosts, not %d", maxHosts, len(o.Hosts))
	}
	seen := map[string]bool{}
	for _, h := range o.Hosts {
		switch {
		case !hostName.MatchString(h.Name):
			return fmt.Errorf("host name %q: want lower-case letters, digits and dashes", h.Name)
		case seen[h.Name]:
			return fmt.Errorf("host name %q is used twice", h.Name)
		case h.Zone < 0 || h.Zone > maxZones:
			return fmt.Errorf("host %s: zone %d is not between 0 and %d", h.Name, h.Zone, maxZones)
		}
		seen[h.Name] = true
	}
	if o.Rate < 0 {
		return errors.New("the rate is negative")
	}
	return nil
}

func (o Options) zones() int {
	zones := 0
	for _, h := range o.Hosts {
		zones = max(zones, h.Zone)
	}
	return zones
}

// address returns the address of the i-th host.
func address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 77, byte(i / 250), byte(i%250 + 1)}) // #nosec G115 -- i < maxHosts
}

func port(i int) string   { return "v" + strconv.Itoa(i) }
func bridge(z int) string { return "br" + strconv.Itoa(z) }
func trunk(z int) string  { return "trunk" + strconv.Itoa(z) }

// plan returns the commands that make the lab, in order. name turns the name
// of a host, or switchName, into that of its namespace.
func (o Options) plan(name func(string) string) [][]string {
	sw := name(switchName)
	cmds := [][]string{{"ip", "netns", "add", sw}}
	for z := 0; z <= o.zones(); z++ {
		cmds = append(cmds,
			[]string{"ip", "-n", sw, "link", "add", bridge(z), "type", "bridge"},
			[]string{"ip", "-n", sw, "link", "set", bridge(z), "up"})
		if z > 0 {
			cmds = append(cmds,
				[]string{"ip", "-n", sw, "link", "add", trunk(z), "type", "veth", "peer", "name", "up" + strconv.Itoa(z)},
				[]string{"ip", "-n", sw, "link", "set", trunk(z), "master", bridge(0), "up"},
				[]string{"ip", "-n", sw, "link", "set", "up" + strconv.Itoa(z), "master", bridge(z), "up"})
		}
	}
	for i, h := range o.Hosts {
		cmds = append(cmds, o.planHost(sw, name(h.Name), i, h.Zone)...)
	}
	return cmds
}

func (o Options) planHost(sw, ns string, i, zone int) [][]string {
	prefix := netip.MustParsePrefix(network)
	cmds := [][]string{
		{"ip", "netns", "add", ns},
		{"ip", "-n", ns, "link", "set", "lo", "up"},
		{"ip", "-n", sw, "link", "add", port(i), "type", "veth", "peer", "name", "eth0", "netns", ns},
		// No IPv6: its duplicate address detection is traffic of its own.
		{"ip", "-n", ns, "link", "set", "eth0", "addrgenmode", "none"},
		{"ip", "-n", ns, "addr", "add", fmt.Sprintf("%s/%d", address(i), prefix.Bits()), "dev", "eth0"},
		{"ip", "-n", ns, "link", "set", "eth0", "up"},
		{"ip", "-n", sw, "link", "set", port(i), "master", bridge(zone), "up"},
	}
	if o.Rate == 0 {
		return cmds
	}
	shape := []string{"root", "tbf", "rate", o.Rate.String(), "burst", burst, "latency", latency}
	return append(cmds,
		append([]string{"tc", "-n", ns, "qdisc", "add", "dev", "eth0"}, shape...),
		append([]string{"tc", "-n", sw, "qdisc", "add", "dev", port(i)}, shape...))
}
