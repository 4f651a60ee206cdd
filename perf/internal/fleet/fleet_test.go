package fleet

import (
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMetrics(t *testing.T) {
	m, err := ParseMetrics(`# HELP x y
# TYPE damselfly_piece_download_bytes_total counter
damselfly_piece_download_bytes_total{from="peer"} 3e+06
damselfly_piece_download_bytes_total{from="supernode"} 1000
damselfly_origin_requests_total{kind="blob",code="a b } c"} 2
damselfly_origin_requests_total{kind="manifest"} 5 1700000000000
damselfly_origin_bytes_total 77
damselfly_origin_bytes_total_other 1
`)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m.By("damselfly_piece_download_bytes_total", "from"), map[string]int64{"peer": 3e6, "supernode": 1000}; !maps.Equal(got, want) {
		t.Errorf("by sender: %v, want %v", got, want)
	}
	if got := m.By("damselfly_origin_requests_total", "kind")["manifest"]; got != 5 {
		t.Errorf("manifest requests: %d", got)
	}
	if got := m.Sum("damselfly_origin_requests_total"); got != 7 {
		t.Errorf("sum: %d", got)
	}
	if got := m.Sum("damselfly_origin_bytes_total"); got != 77 {
		t.Errorf("without labels: %d", got)
	}
	for _, bad := range []string{"x", "x{} y", "x y"} {
		if _, err := ParseMetrics(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestArgs(t *testing.T) {
	o := DfdaemonOptions{
		Name: "n1", Supernode: "10.0.0.2:8002", HTTP: "127.0.0.1:3", Mirror: "127.0.0.1:1", Peer: "10.0.0.3:2",
		Proxy: "127.0.0.1:4", Dir: "/d", TokenFile: "/t", Zone: "z1", ProxyRules: []string{"^http://a/"}, Registries: []string{"a.test=http://10.0.0.1:80", "b.test"},
	}
	want := "--name n1 --supernode 10.0.0.2:8002 --http 127.0.0.1:3 --mirror 127.0.0.1:1 --peer 10.0.0.3:2 " +
		"--socket dfdaemon.sock --data-dir /d/data --join-token-file /t --zone z1 --proxy 127.0.0.1:4 --proxy-rule ^http://a/ " +
		"--allow-registry a.test=http://10.0.0.1:80 --allow-registry b.test"
	if got := strings.Join(o.args(), " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	o.Zone, o.Proxy, o.ProxyRules, o.Registries = "", "", nil, nil
	if got := strings.Join(o.args(), " "); strings.Contains(got, "--zone") || strings.Contains(got, "--proxy") || strings.Contains(got, "--allow") {
		t.Errorf("unset options were passed: %s", got)
	}
}

func TestProcessEndsWhenTold(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	ends := map[string]func(*Process){"kill": (*Process).Kill, "stop": (*Process).Stop}
	for _, name := range slices.Sorted(maps.Keys(ends)) {
		p, err := Start(t.Context(), Local{}, "sleeper", log, "sleep", "600")
		if err != nil {
			t.Fatal(err)
		}
		if st, err := p.Use(); err != nil || st.StartTicks == 0 {
			t.Errorf("use: %+v, %v", st, err)
		}
		ends[name](p)
		if err := p.Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := p.Use(); err == nil {
			t.Errorf("%s: process %d is still there", name, p.PID())
		}
	}
}

func TestProcessEndsByItself(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := Start(t.Context(), Local{}, "failing", log, "sh", "-c", "echo no such flag >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "no such flag") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(log); err != nil {
		t.Error(err)
	}
}

func TestAwaitReady(t *testing.T) {
	ready := make(chan struct{})
	asked := make(chan struct{}, 1000)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		select {
		case <-ready:
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	p := &Process{name: "p", done: make(chan struct{})}
	result := make(chan error, 1)
	go func() { result <- AwaitReady(t.Context(), Local{}, p, srv.URL) }()
	<-asked
	close(ready)
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestFreeAddresses(t *testing.T) {
	list, err := FreeAddresses(t.Context(), 20)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	if len(slices.Compact(list)) != 20 {
		t.Errorf("an address came twice: %v", list)
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", list[0])
	if err == nil {
		_ = c.Close()
		t.Errorf("somebody listens on %s", list[0])
	}
}
