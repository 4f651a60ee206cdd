package inspect_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/cluster"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/inspect"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/nodetest"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
)

var blob = "sha256:" + strings.Repeat("ab", 32)

func run(t *testing.T, con *outputtest.Console, args string) error {
	t.Helper()
	root := &cobra.Command{Use: "dfctl", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(inspect.TaskCommand(con.Console), inspect.PeerCommand(con.Console), inspect.CacheCommand(con.Console), inspect.VersionCommand(con.Console))
	root.SetArgs(strings.Fields(args))
	root.SetErr(&bytes.Buffer{})
	return root.ExecuteContext(t.Context())
}

// node has a complete, a partial, an active and a failed task.
func node(t *testing.T, con *outputtest.Console) *nodetest.Node {
	n := nodetest.Start(t)
	con.Env[daemon.EnvSocket] = n.Socket
	ago := func(d time.Duration) int64 { return con.Time.Add(-d).Unix() }
	n.Tasks = []*apiv1.TaskStatus{
		{TaskId: "url:" + strings.Repeat("ac", 32), Table: &apiv1.Table{Length: 3 << 20}, HeldBytes: 1 << 20, HeldPieces: 1, Pieces: 3, Active: true,
			Source: "https://h/active", LastAccessUnix: ago(0), FromPeers: 1 << 20},
		{TaskId: blob, Table: &apiv1.Table{Length: 2 << 30}, HeldBytes: 2 << 30, HeldPieces: 2048, Pieces: 2048, Complete: true,
			Source: "https://h/blob", LastAccessUnix: ago(90 * time.Second), PinnedUntilUnix: ago(-time.Hour), FromPeers: 5, FromSupernode: 6, FromOrigin: 7,
			Etag: `"v1"`, ContentType: "application/gzip"},
		{TaskId: "sha256:" + strings.Repeat("cd", 32), Table: &apiv1.Table{Length: 1 << 20}, Error: "origin answered 500", Source: "https://h/failed\x1b[0m"},
		{TaskId: "sha256:" + strings.Repeat("ef", 32), Table: &apiv1.Table{Length: 4 << 10}, HeldBytes: 1 << 10, Pieces: 1, LastAccessUnix: ago(72 * time.Hour)},
	}
	l := nodetest.StartLazy(t)
	con.Env[daemon.EnvSnapshotter] = l.Socket
	l.Usage = apiv1.DeviceUsageResponse{Bytes: 3 << 30, UsedBytes: 1 << 30, Free: 5 << 30, Devices: 6}
	l.Devices = []*apiv1.VerifyDevicesResponse{{Blob: blob, CheckedGroups: 10}, {Blob: "sha256:other", CheckedGroups: 5}}
	n.Usage = apiv1.CacheUsageResponse{Bytes: 2 << 30, Limit: 10 << 30, PinnedBytes: 1 << 30, Free: 5 << 30, Tasks: 4}
	return n
}

func TestText(t *testing.T) {
	tests := map[string]string{
		"task ls": `TASK                 SIZE     HELD  STATE        LAST USED  SOURCE
sha256:abababababab  2.0 GiB  100%  complete     1m30s ago  https://h/blob
sha256:cdcdcdcdcdcd  1.0 MiB  0%    failed       -          https://h/failed�[0m
sha256:efefefefefef  4.0 KiB  25%   partial      3d ago     -
url:acacacacacac     3.0 MiB  33%   downloading  now        https://h/active
`,
		"task show abab": `task:          ` + blob + `
source:        https://h/blob
state:         complete
size:          2.0 GiB
held:          2.0 GiB (100%), 2048 of 2048 pieces
received:      5 B from peers, 6 B from the supernode, 7 B from the origin
etag:          "v1"
content type:  application/gzip
last used:     1m30s ago
pinned until:  2026-03-01T13:00:00Z
`,
		"cache ls": `TASK                 ON DISK  STATE        LAST USED  PINNED FOR  SOURCE
sha256:efefefefefef  1.0 KiB  partial      3d ago     -           -
sha256:abababababab  2.0 GiB  complete     1m30s ago  1h0m        https://h/blob
url:acacacacacac     1.0 MiB  downloading  now        -           https://h/active
`,
		"cache usage": `CACHE        USED     BY         NOT EVICTED      LIMIT                FREE ON DISK
dfdaemon     2.0 GiB  4 tasks    1.0 GiB pinned   10.0 GiB (20% used)  5.0 GiB
snapshotter  3.0 GiB  6 devices  1.0 GiB mounted  none                 5.0 GiB
`,
		"cache verify":                          "checked 15 groups in 2 devices\n",
		"cache prune --to 0 --only snapshotter": "freed 2.0 GiB: 0 tasks and 2 devices removed\n",
		"task rm sha256:ef":                     "removed sha256:" + strings.Repeat("ef", 32) + "\n",
		"cache prune --to 1.5GiB": "removed " + blob + "\nremoved sha256:" + strings.Repeat("cd", 32) +
			"\nremoved sha256:" + strings.Repeat("ef", 32) + "\nfreed 4.0 GiB: 3 tasks and 2 devices removed\n",
	}
	for args, want := range tests {
		con := outputtest.New("")
		node(t, con)
		if err := run(t, con, args); err != nil {
			t.Errorf("%s: %v", args, err)
		}
		if got := con.Stdout.String(); got != want {
			t.Errorf("%s printed\n%swant\n%s", args, got, want)
		}
	}
}

func TestPruneTarget(t *testing.T) {
	con := outputtest.New("")
	n := node(t, con)
	if err := run(t, con, "cache prune --to 1.5GiB"); err != nil || n.Pruned() != 3<<29 {
		t.Errorf("pruned to %d, %v", n.Pruned(), err)
	}
}

// Every command prints exactly one document, and lists are never null.
func TestJSON(t *testing.T) {
	con := outputtest.New("")
	n := node(t, con)
	for i, args := range []string{"task ls", "task show abab", "cache ls", "cache usage", "task rm ef", "cache prune --to 0", "version", "task ls", "cache verify", "cache ls", "cache prune --to 0"} {
		if i == 7 {
			n.Tasks = nil
		}
		con.Stdout.Reset()
		if err := run(t, con, args+" -o json"); err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		var doc map[string]any
		dec := json.NewDecoder(&con.Stdout)
		if err := dec.Decode(&doc); err != nil || dec.More() {
			t.Errorf("%s: not one document: %v", args, err)
		}
		for key, value := range doc {
			if value == nil {
				t.Errorf("%s: %s is null", args, key)
			}
		}
	}
}

func TestErrors(t *testing.T) {
	con := outputtest.New("")
	node(t, con)
	for args, want := range map[string]struct {
		message string
		code    int
	}{
		"task show 99":                {`task "99": no such task; see 'dfctl task ls'`, exit.NotFound},
		"task show a":                 {"more than one task begins so", 0},
		"task rm ac":                  {"the task is in use", 0},
		"cache prune":                 {`required flag(s) "to" not set`, 0},
		"cache prune --to 0 --only x": {"use dfdaemon or snapshotter", 0},
		"cache prune --to much":       {"want a size such as", 0},
		"task ls --supernode h:1":     {"are for --cluster", 0},
		"peer ls --supernode x/y":     {"use HOST:PORT", 0},
		"peer ls -o table":            {"use text or json", 0},
	} {
		err := run(t, con, args)
		if err == nil || !strings.Contains(err.Error(), want.message) {
			t.Errorf("%s: %v, want %q", args, err, want.message)
		}
		if code, _ := exit.Code(err); code != want.code {
			t.Errorf("%s: exit code %d, want %d", args, code, want.code)
		}
	}
}

func TestCluster(t *testing.T) {
	cached := `{"source":"https://h/blob","size":2048,"pieces":2,"held_pieces":1,"held_bytes":1024,"complete":false,"last_access":"2026-03-01T11:58:00Z"}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := map[string]string{
			"/api/v1/peers":         `{"peers":[{"name":"b","zone":"z1","rack":"r1","address":"10.0.0.2:65002","version":"1.2","tasks":3,"quarantined":true},{"name":"a","address":"10.0.0.1:65002"}]}`,
			"/api/v1/tasks":         `{"tasks":[{"id":"` + blob + `","cached":` + cached + `,"holder_count":2},{"id":"url:` + strings.Repeat("12", 32) + `","cached":null,"holder_count":1}]}`,
			"/api/v1/tasks/" + blob: `{"id":"` + blob + `","cached":` + cached + `,"holder_count":1,"holders":[{"name":"a","held_bytes":2048}]}`,
		}[r.URL.Path]
		if body == "" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, body)
	}))
	defer server.Close()
	for args, want := range map[string]string{
		"peer ls": `NAME  ZONE  RACK  ADDRESS         TASKS  STATE        VERSION
a     -     -     10.0.0.1:65002  0      connected    -
b     z1    r1    10.0.0.2:65002  3      quarantined  1.2
`,
		"task ls --cluster": `TASK                 SIZE     SUPERNODE  NODES  LAST USED  SOURCE
sha256:abababababab  2.0 KiB  50%        2      2m0s ago   https://h/blob
url:121212121212     -        -          1      -          -
`,
		"task show abab --cluster": `task:       ` + blob + `
source:     https://h/blob
size:       2.0 KiB
supernode:  1.0 KiB (50%), 1 of 2 pieces
last used:  2m0s ago
nodes:      1

NODE  HELD
a     2.0 KiB
`,
	} {
		con := outputtest.New("")
		con.Env[cluster.EnvAddress] = server.Listener.Addr().String()
		if err := run(t, con, args); err != nil {
			t.Errorf("%s: %v", args, err)
		}
		if got := con.Stdout.String(); got != want {
			t.Errorf("%s printed\n%swant\n%s", args, got, want)
		}
		con.Stdout.Reset()
		if err := run(t, con, args+" -o json"); err != nil || !json.Valid(con.Stdout.Bytes()) {
			t.Errorf("%s -o json: %v, %s", args, err, &con.Stdout)
		}
	}
}

// A node may have one of the daemons only.
func TestCachesOfOneDaemon(t *testing.T) {
	for env, want := range map[string]string{
		daemon.EnvSocket:      "dfdaemon is not running: there is no socket /nowhere; ",
		daemon.EnvSnapshotter: "snapshotter is not running: there is no socket /nowhere; ",
	} {
		con := outputtest.New("")
		node(t, con)
		con.Env[env] = "/nowhere"
		for _, args := range []string{"cache usage", "cache prune --to 0"} {
			con.Stdout.Reset()
			if err := run(t, con, args); err != nil || !strings.Contains(con.Stdout.String(), "\n"+want) {
				t.Errorf("%s: %v, %s", args, err, &con.Stdout)
			}
		}
		con.Stdout.Reset()
		if err := run(t, con, "cache usage -o json"); err != nil {
			t.Error(err)
		}
		var u inspect.Usage
		if err := json.Unmarshal(con.Stdout.Bytes(), &u); err != nil || len(u.Absent) != 1 || (u.Dfdaemon == nil) == (u.Snapshotter == nil) {
			t.Errorf("%s, %v", &con.Stdout, err)
		}
	}
	con := outputtest.New("")
	con.Env[daemon.EnvSocket], con.Env[daemon.EnvSnapshotter] = "/nowhere", "/nowhere"
	if err := run(t, con, "cache usage"); err == nil || !strings.Contains(err.Error(), "; nor is the snapshotter: snapshotter is not running") {
		t.Errorf("neither: %v", err)
	}
}

func TestVerifySaysWhatIsDamaged(t *testing.T) {
	con := outputtest.New("")
	l := nodetest.StartLazy(t)
	con.Env[daemon.EnvSnapshotter] = l.Socket
	l.Devices = []*apiv1.VerifyDevicesResponse{{Blob: "sha256:a", CheckedGroups: 3, Damaged: []uint32{1, 2}}, {Blob: "sha256:b", Error: "gone"}}
	err := run(t, con, "cache verify")
	if code, _ := exit.Code(err); code != exit.Mismatch || !strings.Contains(err.Error(), "2 groups were on the disk not as written") {
		t.Errorf("error %v, code %d", err, code)
	}
	if got := con.Stdout.String(); got != "sha256:a: damaged: [1 2]\nsha256:b: not checked: gone\nchecked 3 groups in 2 devices\n" {
		t.Errorf("printed %s", got)
	}
	l.Devices = l.Devices[1:]
	con.Stdout.Reset()
	if err := run(t, con, "cache verify -o json"); err == nil || !strings.Contains(err.Error(), "1 device could not be checked") {
		t.Errorf("error %v", err)
	}
	l.PruneError = status.Error(codes.Unavailable, "the snapshotter is still taking over mounts: try again in a moment")
	if err := run(t, con, "cache prune --to 0 --only snapshotter"); err == nil || !strings.Contains(err.Error(), "still taking over mounts") {
		t.Errorf("error %v", err)
	}
}
