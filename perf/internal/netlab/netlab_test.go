package netlab

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/testenv"
)

func TestRate(t *testing.T) {
	for text, want := range map[string]Rate{
		"200mbit": 200e6, "1gbit": 1e9, "1.5Gbit": 1500e6, "64kbit": 64e3, "1500bit": 1500, "none": 0,
	} {
		got, err := ParseRate(text)
		if err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
		if again, err := ParseRate(got.String()); err != nil || again != got {
			t.Errorf("%s: printed as %s, read as %d, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "1", "mbit", "-1mbit", "nanmbit", "infgbit", "1e9gbit", "1MiB"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("%q was read as %d", text, got)
		}
	}
	if got := Rate(200e6).Seconds(25e6); got != 1 {
		t.Errorf("25 MB over 200 Mbit/s: %v s", got)
	}
}

func TestPlan(t *testing.T) {
	o := Options{Rate: 200e6, Hosts: []HostSpec{{Name: "origin"}, {Name: "node1", Zone: 1}}}
	var got []string
	for _, cmd := range o.plan(func(host string) string { return "ns-" + host }) {
		got = append(got, strings.Join(cmd, " "))
	}
	want := []string{
		"ip netns add ns-SWITCH",
		"ip -n ns-SWITCH link add br0 type bridge",
		"ip -n ns-SWITCH link set br0 up",
		"ip -n ns-SWITCH link add br1 type bridge",
		"ip -n ns-SWITCH link set br1 up",
		"ip -n ns-SWITCH link add trunk1 type veth peer name up1",
		"ip -n ns-SWITCH link set trunk1 master br0 up",
		"ip -n ns-SWITCH link set up1 master br1 up",
		"ip netns add ns-origin",
		"ip -n ns-origin link set lo up",
		"ip -n ns-SWITCH link add v0 type veth peer name eth0 netns ns-origin",
		"ip -n ns-origin link set eth0 addrgenmode none",
		"ip -n ns-origin addr add 10.77.0.1/16 dev eth0",
		"ip -n ns-origin link set eth0 up",
		"ip -n ns-SWITCH link set v0 master br0 up",
		"tc -n ns-origin qdisc add dev eth0 root tbf rate 200mbit burst 256kb latency 50ms",
		"tc -n ns-SWITCH qdisc add dev v0 root tbf rate 200mbit burst 256kb latency 50ms",
		"ip netns add ns-node1",
		"ip -n ns-node1 link set lo up",
		"ip -n ns-SWITCH link add v1 type veth peer name eth0 netns ns-node1",
		"ip -n ns-node1 link set eth0 addrgenmode none",
		"ip -n ns-node1 addr add 10.77.0.2/16 dev eth0",
		"ip -n ns-node1 link set eth0 up",
		"ip -n ns-SWITCH link set v1 master br1 up",
		"tc -n ns-node1 qdisc add dev eth0 root tbf rate 200mbit burst 256kb latency 50ms",
		"tc -n ns-SWITCH qdisc add dev v1 root tbf rate 200mbit burst 256kb latency 50ms",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	o.Rate = 0
	for _, cmd := range o.plan(func(host string) string { return host }) {
		if cmd[0] == "tc" {
			t.Errorf("an unshaped lab is shaped: %v", cmd)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]Options{
		"no hosts":      {},
		"same name":     {Hosts: []HostSpec{{Name: "a"}, {Name: "a"}}},
		"name is path":  {Hosts: []HostSpec{{Name: "../a"}}},
		"name of ours":  {Hosts: []HostSpec{{Name: switchName}}},
		"negative zone": {Hosts: []HostSpec{{Name: "a", Zone: -1}}},
		"negative rate": {Rate: -1, Hosts: []HostSpec{{Name: "a"}}},
	} {
		if o.validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestParseCounters(t *testing.T) {
	links, err := parseDevices([]byte(`[{"ifindex":2,"ifname":"eth0","stats64":{"rx":{"bytes":11,"packets":1},"tx":{"bytes":22,"packets":2}}}]`))
	if err != nil || links["eth0"].Stats.RX.Bytes != 11 || links["eth0"].Stats.TX.Bytes != 22 {
		t.Errorf("links %+v, %v", links, err)
	}
	n, err := parseDrops([]byte(`[{"kind":"noqueue","drops":9},{"kind":"tbf","handle":"8001:","bytes":5,"packets":1,"drops":3}]`))
	if err != nil || n != 3 {
		t.Errorf("drops %d, %v", n, err)
	}
	a, b := Counters{10, 20, 30, 40}, Counters{1, 2, 3, 4}
	if got, want := a.Sub(b), (Counters{9, 18, 27, 36}); got != want {
		t.Errorf("difference %+v", got)
	}
}

func TestLab(t *testing.T) {
	testenv.Integration(t)
	testenv.Netns(t) // proves that namespaces can be made here
	for _, tool := range []string{"tc", "nsenter"} {
		testenv.Tool(t, tool)
	}
	lab, err := Up(t.Context(), Options{Rate: 1e9, Hosts: []HostSpec{{Name: "a"}, {Name: "b", Zone: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			_ = lab.Close(context.WithoutCancel(t.Context()))
		}
	}()
	a, b := lab.Host("a"), lab.Host("b")
	exchange(t, a, b)
	c, err := a.Counters(t.Context())
	if err != nil || c.ReceivedBytes < 1<<20 || c.SentBytes == 0 {
		t.Errorf("counters of a: %+v, %v", c, err)
	}
	zones, err := lab.ZoneBytes(t.Context())
	if err != nil || len(zones) != 1 || zones[1] == 0 {
		t.Errorf("zones: %v, %v", zones, err)
	}
	out, err := b.Command(t.Context(), "ip", "-o", "-4", "addr").Output()
	if err != nil || !strings.Contains(string(out), b.Address().String()+"/16") || strings.Contains(string(out), a.Address().String()) {
		t.Errorf("addresses within b: %s, %v", out, err)
	}
	names := lab.made
	closed = true
	if err := lab.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	for _, name := range names {
		if _, err := os.Stat(namespaceDir + "/" + name); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
}

// exchange sends 1 MiB from b to a.
func exchange(t *testing.T, a, b *Host) {
	t.Helper()
	l, err := a.Listen(t.Context(), a.Address().String()+":9000")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	content := bytes.Repeat([]byte("damselfly"), 1<<20/9+1)
	got := make(chan []byte, 1)
	go func() {
		defer close(got)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		all, _ := io.ReadAll(conn)
		got <- all
	}()
	conn, err := b.Dial(t.Context(), "tcp", a.Address().String()+":9000")
	if err != nil {
		t.Fatal(err)
	}
	if from, _, err := net.SplitHostPort(conn.LocalAddr().String()); err != nil || from != b.Address().String() {
		t.Errorf("dialled from %s, %v", from, err)
	}
	if _, err := conn.Write(content); err != nil {
		t.Error(err)
	}
	_ = conn.Close()
	if all := <-got; !bytes.Equal(all, content) {
		t.Errorf("received %d bytes", len(all))
	}
	if _, err := b.Dial(t.Context(), "tcp", "localhost:1"); err == nil {
		t.Error("a name was dialled")
	}
}
