package tracker

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
)

func TestHelloIsChecked(t *testing.T) {
	c := newCluster(t, small, nil)
	const address = "198.51.100.1:65002"
	long := strings.Repeat("x", 254)
	for _, tc := range []struct {
		name string
		m    *apiv1.PeerMessage
	}{
		{"another message first", c.interest(1)},
		{"nothing", &apiv1.PeerMessage{}},
		{"no name", hello(&apiv1.Hello{PeerAddress: address})},
		{"long name", hello(&apiv1.Hello{Name: long, PeerAddress: address})},
		{"long zone", hello(&apiv1.Hello{Name: "a", Zone: long, PeerAddress: address})},
		{"long rack", hello(&apiv1.Hello{Name: "a", Rack: long, PeerAddress: address})},
		{"long version", hello(&apiv1.Hello{Name: "a", Version: long, PeerAddress: address})},
		{"name with NUL", hello(&apiv1.Hello{Name: "a\x00b", PeerAddress: address})},
		{"name with a line end", hello(&apiv1.Hello{Name: "a\nb", PeerAddress: address})},
		{"the supernode's name", hello(&apiv1.Hello{Name: self, PeerAddress: address})},
		{"no address", hello(&apiv1.Hello{Name: "a"})},
		{"no port", hello(&apiv1.Hello{Name: "a", PeerAddress: "198.51.100.1"})},
		{"port 0", hello(&apiv1.Hello{Name: "a", PeerAddress: "198.51.100.1:0"})},
		{"port with a path", hello(&apiv1.Hello{Name: "a", PeerAddress: "198.51.100.1:80/x?y="})},
		{"host with a path", hello(&apiv1.Hello{Name: "a", PeerAddress: "a/b:80"})},
		{"host with userinfo", hello(&apiv1.Hello{Name: "a", PeerAddress: "a@b:80"})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := c.dial(tc.m).waitEnd(); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v, want InvalidArgument", err)
			}
		})
	}
	if p := c.Peers(); len(p) != 0 {
		t.Errorf("peers %v", p)
	}
}

func TestAddresses(t *testing.T) {
	c := newCluster(t, small, func(o *Options) { o.Address = "0.0.0.0:8003" })
	for in, want := range map[string]string{
		"10.1.2.3:65002":      "10.1.2.3:65002",
		"node-7.example:5":    "node-7.example:5",
		"[2001:db8::7]:65002": "[2001:db8::7]:65002",
		"0.0.0.0:65002":       "198.51.100.7:65002",
		"[::]:65002":          "198.51.100.7:65002",
		":65002":              "198.51.100.7:65002",
	} {
		d := c.joinAs(&apiv1.Hello{Name: "a", PeerAddress: in, Zone: "z", Version: "v1"}, c.interest(1))
		if p := c.Peers(); len(p) != 1 || p[0].Address != want || p[0].Zone != "z" || p[0].Version != "v1" {
			t.Errorf("%q: peers %+v, want address %q", in, p, want)
		}
		list := d.wait("Parents", func(m *apiv1.SupernodeMessage) bool { return m.GetParents() != nil }).GetParents()
		if a := list.Parents[0].Address; a != "203.0.113.9:8003" {
			t.Errorf("the supernode is at %q, want where the stream goes", a)
		}
		d.leave()
	}
}

func TestSecondHelloReplaces(t *testing.T) {
	c := newCluster(t, small, nil)
	other := c.join("other", c.interest(1))
	old := c.join("node", c.interest(1), c.finished(3))
	other.waitParents("node", self)
	fresh := c.joinAs(&apiv1.Hello{Name: "node", PeerAddress: "198.51.100.2:65002"})
	if err := old.waitEnd(); status.Code(err) != codes.Aborted {
		t.Errorf("the first ends with %v, want Aborted", err)
	}
	if p := c.Peers(); len(p) != 2 || p[0].Address != "198.51.100.2:65002" {
		t.Errorf("peers %+v", p)
	}
	other.waitParents(self)
	if h := c.Holders(c.id); len(h) != 0 {
		t.Errorf("holders %v: what the first held is not known of the second", h)
	}
	fresh.send(c.interest(1))
	other.waitParents("node", self)
	if err := c.dial(hello(&apiv1.Hello{Name: "x", PeerAddress: "a:1"}), hello(&apiv1.Hello{Name: "x", PeerAddress: "a:1"})).waitEnd(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("two on one stream: %v, want InvalidArgument", err)
	}
}
