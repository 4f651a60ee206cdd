package doctor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/doctor"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/nodetest"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
)

// machine is a node on which all is well until a test says otherwise.
type machine struct {
	t       *testing.T
	system  doctor.System
	node    *nodetest.Node
	lazy    *nodetest.Lazy
	dir     string
	version string // of containerd
	config  string // containerd's
	units   string // what systemctl says of each
	files   string // the snapshotter's limit
	limit   string // of fanotify
	dial    map[string]error
}

const goodConfig = `version = 3
[proxy_plugins.damselfly]
  type = "snapshot"
  address = "SOCKET"
  [proxy_plugins.damselfly.exports]
    enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "damselfly"
  disable_snapshot_annotations = false
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "CERTS"
`

const oldConfig = `version = 2
[proxy_plugins.damselfly]
  type = "snapshot"
  address = "SOCKET"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "damselfly"
  disable_snapshot_annotations = true
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = ""
`

func newMachine(t *testing.T) *machine {
	m := &machine{
		t: t, node: nodetest.Start(t), lazy: nodetest.StartLazy(t), dir: t.TempDir(),
		version: "containerd github.com/containerd/containerd/v2 v2.3.1 abc", config: goodConfig, units: "enabled", files: "1048576", limit: "65536",
		dial: map[string]error{},
	}
	m.node.NodeInfo = apiv1.InfoResponse{Version: "1.2.3", Name: "n1", Connected: true, TrustKeys: [][]byte{{1}}}
	m.lazy.Images = []*apiv1.LazyImage{{Reference: "a", Mounts: []*apiv1.LazyMount{{}}}, {Reference: "b", Reason: "no-index"}}
	hosts := filepath.Join(m.dir, "_default", "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(hosts), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(hosts, []byte("[host.\"http://127.0.0.1:65001\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := func(context.Context, string) error { return nil }
	m.system = doctor.System{
		Root: func() bool { return true }, Release: func() (string, error) { return "6.18.1", nil },
		Run: m.run, ReadFile: m.read, Exists: func(name string) bool { return name == "/run/systemd/system" },
		Disk:     func(string) (int64, int64, error) { return 0xEF53, 5 << 30, nil },
		Fanotify: good, EROFS: good, FUSE: func() error { return nil },
		Dial: func(_ context.Context, _, path string) (int, error) { return 42, m.dial[filepath.Base(path)] },
	}
	return m
}

func (m *machine) run(_ context.Context, name string, args ...string) (string, error) {
	switch {
	case name == "systemctl":
		return m.units + "\n", nil
	case m.version == "":
		return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
	case args[0] == "--version":
		return m.version + "\n", nil
	}
	return strings.NewReplacer("SOCKET", m.lazy.Socket, "CERTS", m.dir).Replace(m.config), nil
}

func (m *machine) read(name string) ([]byte, error) {
	switch {
	case name == "/proc/42/limits":
		return fmt.Appendf(nil, "Limit                     Soft Limit           Hard Limit           Units\nMax open files            %s              1048576              files\n", m.files), nil
	case strings.HasPrefix(name, "/proc/sys/fs/fanotify/"):
		return []byte(m.limit + "\n"), nil
	case strings.HasPrefix(name, m.dir):
		return os.ReadFile(name)
	}
	return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
}

// examine runs dfctl doctor.
func (m *machine) examine(args ...string) (string, error) {
	m.t.Helper()
	con := outputtest.New("")
	con.Env[daemon.EnvSocket], con.Env[daemon.EnvSnapshotter] = m.node.Socket, m.lazy.Socket
	root := &cobra.Command{Use: "dfctl", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(doctor.Command(con.Console, m.system))
	root.SetErr(&bytes.Buffer{})
	root.SetArgs(append([]string{"doctor", "--data-dir", m.dir}, args...))
	err := root.ExecuteContext(m.t.Context())
	return con.Stdout.String(), err
}

func TestAllIsWell(t *testing.T) {
	m := newMachine(t)
	out, err := m.examine()
	if err != nil {
		t.Errorf("%v", err)
	}
	for _, want := range []string{
		"ok       kernel                 Linux 6.18.1\n",
		"ok       data directory         " + m.dir + " is on ext4, 5.0 GiB free\n",
		"ok       containerd             version 2.3.1\n",
		"ok       containerd's plugin    proxy_plugins.damselfly leads to " + m.lazy.Socket + "\n",
		"ok       containerd's mirrors   _default lead to 127.0.0.1:65001\n",
		"ok       supernode              connected, 1 key to sign indexes\n",
		"backend erofs, 1 mount, 1 image asked for that could not be lazy\n",
		"ok       open files             the snapshotter may open 1048576\n",
		"\n0 problems, 0 warnings, 0 not known\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
}

func TestFindings(t *testing.T) {
	tests := map[string]struct {
		change func(*machine)
		check  string
		status doctor.Status
		found  string
		remedy string
	}{
		"old kernel":        {func(m *machine) { m.release("5.0.0") }, "kernel", doctor.Problem, "Linux 5.0.0", "update the kernel"},
		"kernel for FUSE":   {func(m *machine) { m.release("5.10.0-9-amd64") }, "kernel", doctor.Warning, "5.10.0", "6.15"},
		"odd kernel":        {func(m *machine) { m.release("plan9") }, "kernel", doctor.Unknown, "plan9", ""},
		"data on overlayfs": {func(m *machine) { m.disk(0x794c7630) }, "data directory", doctor.Problem, "overlayfs", "ext4 or xfs"},
		"data on others":    {func(m *machine) { m.disk(0x1234) }, "data directory", doctor.Warning, "type 0x1234", "ext4 or xfs"},
		"no fanotify":       {func(m *machine) { m.system.Fanotify = fails("no event came") }, "fanotify", doctor.Warning, "no event came", "Linux 6.15"},
		"no EROFS":          {func(m *machine) { m.system.EROFS = fails("no such device") }, "EROFS", doctor.Warning, "no such device", "modprobe erofs"},
		"no FUSE":           {func(m *machine) { m.system.FUSE = func() error { return os.ErrNotExist } }, "FUSE", doctor.Warning, "not exist", "modprobe fuse"},
		"no backend": {func(m *machine) {
			m.system.EROFS, m.system.FUSE = fails("no"), func() error { return os.ErrNotExist }
		}, "FUSE", doctor.Problem, "not exist", "modprobe fuse"},
		"low limits":         {func(m *machine) { m.limit = "128" }, "fanotify limits", doctor.Warning, "max_user_groups = 128", "65536"},
		"no containerd":      {func(m *machine) { m.version = "" }, "containerd", doctor.Warning, "no program", "PATH"},
		"no config":          {func(m *machine) { m.version = "" }, "containerd's config", doctor.Problem, "config.toml", "deploy/containerd"},
		"old containerd":     {func(m *machine) { m.version = "containerd x 1.5.9 y" }, "containerd", doctor.Problem, "1.5.9", "update"},
		"broken config":      {func(m *machine) { m.config = "version = " }, "containerd's config", doctor.Problem, "config dump", "correct"},
		"no plugin":          {func(m *machine) { m.config = "version = 3\n" }, "containerd's plugin", doctor.Problem, "no proxy plugin", "restart containerd"},
		"other socket":       {func(m *machine) { m.replace("SOCKET", "/other.sock") }, "containerd's plugin", doctor.Problem, "leads to /other.sock", "--snapshotter"},
		"CRI on overlayfs":   {func(m *machine) { m.replace(`snapshotter = "damselfly"`, "") }, "containerd's CRI", doctor.Warning, `"", not "damselfly"`, `[plugins."io.containerd.cri.v1.images"]`},
		"no annotations":     {func(m *machine) { m.config = oldConfig }, "containerd's CRI", doctor.Problem, "not false", `[plugins."io.containerd.grpc.v1.cri".containerd]`},
		"default annotation": {func(m *machine) { m.replace("disable_snapshot_annotations = false", "") }, "containerd's CRI", doctor.Problem, "not false", "restart"},
		"no transfer":        {func(m *machine) { m.replace(`= "true"`, `= "no"`) }, "containerd's transfer", doctor.Warning, "exports", "containerd-2.toml"},
		"no mirrors":         {func(m *machine) { m.config = oldConfig }, "containerd's mirrors", doctor.Warning, "config_path is not set", "dfctl node setup"},
		"other mirrors":      {func(m *machine) { m.replace("CERTS", "/nowhere") }, "containerd's mirrors", doctor.Warning, "no hosts.toml in /nowhere", "--mirror"},
		"no dfdaemon":        {func(m *machine) { m.node.Socket = "/nowhere" }, "dfdaemon", doctor.Problem, "no socket /nowhere", "systemctl start"},
		"no supernode":       {func(m *machine) { m.node.NodeInfo.Connected = false }, "supernode", doctor.Problem, "not connected", "readyz"},
		"no registry":        {func(m *machine) { m.dial["dfdaemon-http.sock"] = os.ErrNotExist }, "dfdaemon's registry", doctor.Problem, "no socket", "restart dfdaemon"},
		"no holder":          {func(m *machine) { m.dial["dfdaemon-fds.sock"] = errors.New("refused") }, "dfdaemon as holder", doctor.Warning, "refused", "restart dfdaemon"},
		"no keeper":          {func(m *machine) { m.dial["keeper.sock"] = os.ErrNotExist }, "keeper", doctor.Problem, "no socket", "damselfly-keeper"},
		"few files":          {func(m *machine) { m.files = "1024" }, "open files", doctor.Warning, "1024", "LimitNOFILE"},
		"units":              {func(m *machine) { m.units = "disabled" }, "systemd units", doctor.Warning, "damselfly-keeper is disabled", "enable --now"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			tt.change(m)
			out, err := m.examine("-o", "json")
			var r doctor.Report
			if err := json.Unmarshal([]byte(out), &r); err != nil {
				t.Fatal(err)
			}
			if (err == nil) != r.OK || tt.status == doctor.Problem && r.OK || err != nil && !errors.Is(err, doctor.ErrProblems) {
				t.Errorf("ok %v, error %v", r.OK, err)
			}
			for _, f := range r.Findings {
				if f.Check != tt.check {
					continue
				}
				if f.Status != tt.status || !strings.Contains(f.Found, tt.found) || !strings.Contains(f.Remedy, tt.remedy) || f.Meaning == "" {
					t.Errorf("finding %+v", f)
				}
				return
			}
			t.Errorf("no finding %s in %s", tt.check, out)
		})
	}
}

// Who is not root is told what could not be looked at, and has no problem.
func TestWithoutRoot(t *testing.T) {
	m := newMachine(t)
	m.system.Root = func() bool { return false }
	m.system.FUSE = func() error { return os.ErrPermission }
	for _, socket := range []string{"dfdaemon-http.sock", "dfdaemon-fds.sock", "keeper.sock"} {
		m.dial[socket] = os.ErrPermission
	}
	out, err := m.examine()
	if err != nil || !strings.Contains(out, "0 problems, 0 warnings, 6 not known\n") || !strings.Contains(out, "to do: run it with sudo") {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestTrustPolicy(t *testing.T) {
	m := newMachine(t)
	file := filepath.Join(m.dir, "trust.yaml")
	if err := os.WriteFile(file, []byte("keyz: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := m.examine("--trust", file); !errors.Is(err, doctor.ErrProblems) || !strings.Contains(out, "problem  trust policy") {
		t.Errorf("%v:\n%s", err, out)
	}
	if err := os.WriteFile(file, []byte("unsigned: [r.local/app]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := m.examine("--trust", file); err != nil || !strings.Contains(out, "trust.yaml can be used") {
		t.Errorf("%v:\n%s", err, out)
	}
}

func (m *machine) release(s string) { m.system.Release = func() (string, error) { return s, nil } }

func (m *machine) disk(kind int64) {
	m.system.Disk = func(string) (int64, int64, error) { return kind, 1, nil }
}

func (m *machine) replace(old, by string) { m.config = strings.ReplaceAll(m.config, old, by) }

func fails(message string) func(context.Context, string) error {
	return func(context.Context, string) error { return errors.New(message) }
}
