package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	criSet    = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n"
	hubHosts  = "/etc/containerd/certs.d/docker.io/hosts.toml"
	hubBefore = "# ours\nserver = \"https://registry-1.docker.io\"\n\n[host.\"https://cache.example.com\"]\n"
)

// replace edits a file as an operator would.
func replace(old, with string) func(string) string {
	return func(s string) string { return strings.Replace(s, old, with, 1) }
}

func TestEditedSinceSetup(t *testing.T) {
	hub := []string{"--runtime", "containerd", "--registry", "docker.io"}
	hubFiles := map[string]string{configTOML: criSet, hubHosts: hubBefore}
	tests := []struct {
		name  string
		files map[string]string
		args  []string
		path  string
		edit  func(string) string
		want  string // after remove; "" means deleted
		stop  bool   // remove refuses without --force
	}{
		{
			name: "hosts.toml with a host added", files: hubFiles, args: hub, path: hubHosts,
			edit: func(s string) string { return s + "[host.\"https://new.example.com\"]\n" },
			want: hubBefore + "[host.\"https://new.example.com\"]\n",
		},
		{
			name: "hosts.toml with a key added to our section", files: hubFiles, args: hub, path: hubHosts,
			edit: replace(endMark, endMark+"  skip_verify = true\n"), stop: true,
		},
		{
			name: "hosts.toml with our section edited", files: hubFiles, args: hub, path: hubHosts,
			edit: replace("\"pull\", ", ""), stop: true,
		},
		{
			name: "hosts.toml broken", files: hubFiles, args: hub, path: hubHosts,
			edit: func(s string) string { return s + "[host" }, stop: true,
		},
		{name: "hosts.toml deleted", files: hubFiles, args: hub, path: hubHosts, stop: true},
		{
			name: "created hosts.toml with a comment added", files: map[string]string{configTOML: criSet}, args: hub, path: hubHosts,
			edit: func(s string) string { return "# mine\n" + s }, want: "# mine\n",
		},
		{
			name: "created hosts.toml with a blank line added", files: map[string]string{configTOML: criSet}, args: hub, path: hubHosts,
			edit: func(s string) string { return s + "\n" },
		},
		{
			name: "config.toml with a plugin added", files: map[string]string{configTOML: "version = 2\n"},
			args: []string{"--runtime", "containerd", "--edit-config"}, path: configTOML,
			edit: func(s string) string { return s + "[plugins.x]\n  a = 1\n" },
			want: "version = 2\n[plugins.x]\n  a = 1\n",
		},
		{
			name: "config.toml with another config_path", files: map[string]string{configTOML: "version = 2\n"},
			args: []string{"--runtime", "containerd", "--edit-config"}, path: configTOML,
			edit: replace("certs.d", "other.d"), stop: true,
		},
		{
			name: "daemon.json with a mirror and a key added", files: map[string]string{daemonJSON: "{\n  \"debug\": true\n}\n"},
			args: []string{"--runtime", "docker"}, path: daemonJSON,
			edit: func(string) string {
				return `{"registry-mirrors": ["http://127.0.0.1:65001", "https://b"], "debug": false}`
			},
			want: `{"registry-mirrors": ["https://b"], "debug": false}`,
		},
		{
			name: "daemon.json with the key last", files: map[string]string{daemonJSON: "{\"debug\": true}"},
			args: []string{"--runtime", "docker"}, path: daemonJSON,
			edit: func(string) string { return "{\"debug\": 1,\n \"registry-mirrors\": [\"http://127.0.0.1:65001\"]\n}" },
			want: "{\"debug\": 1\n}",
		},
		{
			name: "daemon.json without our mirror", files: map[string]string{daemonJSON: "{}"},
			args: []string{"--runtime", "docker"}, path: daemonJSON,
			edit: func(string) string { return `{"debug": true}` }, stop: true,
		},
		{
			name: "drop-in with a registry added", args: []string{"--runtime", "podman"}, path: dropIn,
			edit: func(s string) string { return s + "[[registry]]\nlocation = \"x.example.com\"\n" },
			want: "[[registry]]\nlocation = \"x.example.com\"\n",
		},
		{
			name: "drop-in with a key added to our registry", args: []string{"--runtime", "podman"}, path: dropIn,
			edit: func(s string) string { return s + "blocked = true\n" }, stop: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := newRoot(t, tt.files)
			original := snapshot(t, root)
			mustRun(t, Options{}, append([]string{"setup", "--root", root}, tt.args...)...)
			name := filepath.Join(root, tt.path)
			if tt.edit == nil {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			} else {
				put(t, root, tt.path, tt.edit(get(t, root, tt.path)))
			}
			edited := snapshot(t, root)
			_, err := run(t, Options{}, "remove", "--root", root)
			if tt.stop {
				if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "--force") {
					t.Fatalf("remove: %v; want an error naming %s and --force", err, name)
				}
				diff(t, "after refused remove", snapshot(t, root), edited)
				mustRun(t, Options{}, "remove", "--root", root, "--force")
				diff(t, "after forced remove", snapshot(t, root), original)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := contents(t, root)[strings.TrimPrefix(tt.path, "/")]
			if got != tt.want {
				t.Errorf("after remove %q, want %q", got, tt.want)
			}
			if _, err := os.Stat(filepath.Join(root, stateDir)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("state is still there: %v", err)
			}
		})
	}
}

// An operator's edit survives a later setup too, and the remove after it.
func TestSetupAfterEdit(t *testing.T) {
	root := newRoot(t, map[string]string{configTOML: criSet, hubHosts: hubBefore})
	setup := []string{"setup", "--root", root, "--runtime", "containerd", "--registry", "docker.io"}
	mustRun(t, Options{}, setup...)
	put(t, root, hubHosts, get(t, root, hubHosts)+"# later\n")
	mustRun(t, Options{}, append(setup, "--mirror", "127.0.0.1:7001")...)
	if got := get(t, root, hubHosts); !strings.Contains(got, "127.0.0.1:7001") || strings.Contains(got, "65001") || !strings.Contains(got, "# later") {
		t.Errorf("after the second setup:\n%s", got)
	}
	mustRun(t, Options{}, "remove", "--root", root)
	if got, want := get(t, root, hubHosts), hubBefore+"# later\n"; got != want {
		t.Errorf("after remove %q, want %q", got, want)
	}
}

func TestSetupRefuses(t *testing.T) {
	hub := []string{"--runtime", "containerd", "--registry", "docker.io"}
	certs := "/etc/containerd/certs.d/docker.io/"
	registry := "[plugins.\"io.containerd.grpc.v1.cri\".registry"
	tests := []struct {
		name  string
		files map[string]string
		args  []string
		want  string
		force bool // --force goes on
	}{
		{name: "no runtime", want: "found no container runtime"},
		{name: "two runtimes", files: map[string]string{configTOML: "", daemonJSON: "{}"}, want: "choose with --runtime"},
		{name: "unknown runtime", args: []string{"--runtime", "rkt"}, want: `--runtime "rkt"`},
		{name: "unknown output", args: []string{"-o", "yaml"}, want: `--output "yaml"`},
		{name: "argument", args: []string{"containerd"}, want: "unknown command"},
		{name: "bad mirror", args: append([]string{"--mirror", "http://127.0.0.1:1"}, hub...), want: "use HOST:PORT"},
		{name: "bad port", args: append([]string{"--mirror", "127.0.0.1:70000"}, hub...), want: "port from 1 to 65535"},
		{name: "registry with path", args: []string{"--runtime", "containerd", "--registry", "quay.io/x"}, want: "without scheme and path"},
		{name: "registry escaping", args: []string{"--runtime", "containerd", "--registry", ".."}, want: "without scheme and path"},
		{name: "registry alias", args: []string{"--runtime", "containerd", "--registry", "index.docker.io"}, want: "docker.io"},
		{name: "registry twice", args: []string{"--runtime", "podman", "--registry", "quay.io", "--registry", "quay.io"}, want: "twice"},
		{name: "relative config path", args: []string{"--runtime", "containerd", "--config-path", "certs.d"}, want: "absolute"},
		{name: "config path for docker", args: []string{"--runtime", "docker", "--config-path", "/x"}, want: "for containerd"},
		{name: "other registry for docker", args: []string{"--runtime", "docker", "--registry", "quay.io"}, want: "docker.io only"},
		{name: "default for crio", args: []string{"--runtime", "crio", "--registry", "_default"}, want: "_default"},

		{name: "no config_path", files: map[string]string{configTOML: "version = 2\n"}, args: hub, want: registry + "]\n  config_path = \"/etc/containerd/certs.d\""},
		{name: "no config_path in version 1", files: map[string]string{configTOML: "root = \"/x\"\n"}, args: hub, want: "[plugins.cri.registry]\n"},
		{name: "mirrors", files: map[string]string{configTOML: "version = 2\n" + registry + ".mirrors.\"docker.io\"]\nendpoint = []\n"}, args: append([]string{"--edit-config"}, hub...), want: "mirrors"},
		{name: "tls", files: map[string]string{configTOML: "version = 2\n" + registry + ".configs.\"a.b\".tls]\nca_file = \"x\"\n"}, args: append([]string{"--edit-config"}, hub...), want: `configs."a.b".tls`},
		{name: "config.toml broken", files: map[string]string{configTOML: "version = "}, args: hub, want: "not valid TOML"},
		{name: "config.toml inline", files: map[string]string{configTOML: "version = 2\nplugins = {}\n"}, args: append([]string{"--edit-config"}, hub...), want: "without changing something else"},
		{name: "edit beside another path", files: map[string]string{configTOML: criSet}, args: append([]string{"--edit-config", "--config-path", "/other"}, hub...), want: "leave --config-path out"},
		{name: "hosts.toml broken", files: map[string]string{configTOML: criSet, hubHosts: "[host"}, args: hub, want: "not valid TOML"},
		{name: "hosts.toml inline", files: map[string]string{configTOML: criSet, hubHosts: "host = {}\n"}, args: hub, want: "rewrite them as sections"},
		{name: "hosts.toml keys", files: map[string]string{configTOML: criSet, hubHosts: "[host]\n\"https://a\" = {}\n"}, args: hub, want: "rewrite them as sections"},
		{name: "mirror not first", files: map[string]string{configTOML: criSet, hubHosts: "[host.a]\n[host.\"http://127.0.0.1:65001\"]\n"}, args: hub, want: "move it to the top"},
		{name: "certificates", files: map[string]string{configTOML: criSet, certs + "ca.crt": "x"}, args: hub, want: "ca.crt", force: true},

		{name: "daemon.json broken", files: map[string]string{daemonJSON: "{"}, args: []string{"--runtime", "docker"}, want: "not valid JSON"},
		{name: "daemon.json list", files: map[string]string{daemonJSON: "[]"}, args: []string{"--runtime", "docker"}, want: "not a JSON object"},
		{name: "daemon.json twice", files: map[string]string{daemonJSON: "{}{}"}, args: []string{"--runtime", "docker"}, want: "something follows"},
		{name: "mirrors not a list", files: map[string]string{daemonJSON: `{"registry-mirrors": "x"}`}, args: []string{"--runtime", "docker"}, want: "not a list"},
		{name: "mirrors twice", files: map[string]string{daemonJSON: `{"registry-mirrors": [], "registry-mirrors": []}`}, args: []string{"--runtime", "docker"}, want: "there twice"},
		{name: "docker mirror not first", files: map[string]string{daemonJSON: `{"registry-mirrors": ["a", "http://127.0.0.1:65001"]}`}, args: []string{"--runtime", "docker"}, want: "not first"},

		{name: "prefix elsewhere", files: map[string]string{registriesDir + "/10.conf": "[[registry]]\nprefix = \"docker.io\"\nlocation = \"x\"\n"}, args: []string{"--runtime", "podman"}, want: "10.conf already defines registry docker.io", force: true},
		{name: "location elsewhere", files: map[string]string{registriesConf: "[[registry]]\nlocation = \"docker.io\"\n"}, args: []string{"--runtime", "crio"}, want: "registries.conf already defines", force: true},
		{name: "old format elsewhere", files: map[string]string{registriesConf: "[registries.insecure]\nregistries = [\"docker.io\"]\n"}, args: []string{"--runtime", "crio"}, want: "already defines", force: true},
		{name: "registries.conf broken", files: map[string]string{registriesConf: "[["}, args: []string{"--runtime", "crio"}, want: "not valid TOML"},
		{name: "drop-in of somebody else", files: map[string]string{dropIn: "# mine\n"}, args: []string{"--runtime", "podman"}, want: "not written by setup", force: true},
		{name: "state of a newer version", files: map[string]string{statePath: `{"version": 2, "files": []}`}, args: hub, want: "version 2"},
		{name: "state broken", files: map[string]string{statePath: `{`}, args: hub, want: statePath},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := newRoot(t, tt.files)
			original := snapshot(t, root)
			args := append([]string{"setup", "--root", root}, tt.args...)
			out, err := run(t, Options{}, args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q\n%s", err, tt.want, out)
			}
			diff(t, "after refused setup", snapshot(t, root), original)
			if tt.force {
				mustRun(t, Options{}, append(args, "--force")...)
				mustRun(t, Options{}, "remove", "--root", root)
				diff(t, "after remove", snapshot(t, root), original)
			}
		})
	}
}

func TestSymlinkIsRefused(t *testing.T) {
	root := newRoot(t, map[string]string{"/managed/daemon.json": "{}"})
	put(t, root, "/etc/docker/x", "")
	if err := os.Symlink("/managed/daemon.json", filepath.Join(root, daemonJSON)); err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, Options{}, "setup", "--root", root, "--runtime", "docker"); !errors.Is(err, errNotRegular) {
		t.Fatalf("error %v, want %v", err, errNotRegular)
	}
}

func TestSetupIsDeclarative(t *testing.T) {
	root := newRoot(t, map[string]string{configTOML: criSet, hubHosts: hubBefore})
	original := snapshot(t, root)
	setup := []string{"setup", "--root", root, "--runtime", "containerd"}
	mustRun(t, Options{}, append(setup, "--registry", "docker.io", "--registry", "quay.io")...)
	mustRun(t, Options{}, append(setup, "--registry", "quay.io", "--registry", "gcr.io")...)
	if got := get(t, root, hubHosts); got != hubBefore {
		t.Errorf("docker.io was not taken back:\n%s", got)
	}
	for _, reg := range []string{"quay.io", "gcr.io"} {
		if !strings.Contains(get(t, root, "/etc/containerd/certs.d/"+reg+"/hosts.toml"), "65001") {
			t.Errorf("%s has no mirror", reg)
		}
	}
	mustRun(t, Options{}, "remove", "--root", root)
	diff(t, "after remove", snapshot(t, root), original)
}

// CRI-O and Podman read the same drop-in: it stays until both let go of it.
func TestSharedDropIn(t *testing.T) {
	root := newRoot(t, nil)
	original := snapshot(t, root)
	mustRun(t, Options{}, "setup", "--root", root, "--runtime", "crio")
	mustRun(t, Options{}, "setup", "--root", root, "--runtime", "podman")
	rep := runJSON(t, Options{}, "remove", "--root", root, "--runtime", "podman")
	if len(rep.Files) != 1 || rep.Files[0].Result != resultKept {
		t.Errorf("first remove: %+v", rep.Files)
	}
	get(t, root, dropIn)
	rep = runJSON(t, Options{}, "remove", "--root", root, "--runtime", "crio")
	if !slices.Equal(rep.Restart, []string{"systemctl reload crio"}) {
		t.Errorf("restart %q", rep.Restart)
	}
	diff(t, "after both removes", snapshot(t, root), original)
}

func TestStatus(t *testing.T) {
	ok := mirrorServer(t, http.StatusOK)
	setup := []string{"--runtime", "containerd", "--registry", "docker.io"}
	files := map[string]string{configTOML: criSet, hubHosts: hubBefore}
	tests := []struct {
		name   string
		mirror string
		edit   func(string) string
		gone   bool
		ok     bool
		result string
	}{
		{name: "healthy", mirror: ok, ok: true, result: resultInForce},
		{name: "mirror wants a token", mirror: mirrorServer(t, http.StatusUnauthorized), ok: true, result: resultInForce},
		{name: "mirror broken", mirror: mirrorServer(t, http.StatusBadGateway), result: resultInForce},
		{name: "mirror down", mirror: deadMirror, result: resultInForce},
		{name: "edited", mirror: ok, edit: func(s string) string { return s + "# x\n" }, ok: true, result: resultEdited},
		{name: "lost", mirror: ok, edit: func(string) string { return hubBefore }, result: resultLost},
		{name: "gone", mirror: ok, gone: true, result: resultGone},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := newRoot(t, files)
			opts := Options{Client: http.DefaultClient}
			mustRun(t, opts, append([]string{"setup", "--root", root, "--mirror", tt.mirror}, setup...)...)
			if tt.edit != nil {
				put(t, root, hubHosts, tt.edit(get(t, root, hubHosts)))
			}
			if tt.gone {
				if err := os.Remove(filepath.Join(root, hubHosts)); err != nil {
					t.Fatal(err)
				}
			}
			_, err := run(t, opts, "status", "--root", root)
			if (err == nil) != tt.ok || (err != nil && !errors.Is(err, ErrNotInForce)) {
				t.Errorf("status: %v, want healthy=%v", err, tt.ok)
			}
			rep := runJSON(t, opts, "status", "--root", root)
			if rep.OK != tt.ok || len(rep.Files) != 1 || rep.Files[0].Result != tt.result {
				t.Errorf("report %+v, want %q", rep, tt.result)
			}
		})
	}
}

func TestStatusOfNothing(t *testing.T) {
	root := newRoot(t, nil)
	out, err := run(t, Options{}, "status", "--root", root)
	if !errors.Is(err, ErrNotInForce) || !strings.Contains(out, "nothing is set up") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestNotes(t *testing.T) {
	v22 := fixedVersion("containerd github.com/containerd/containerd/v2 v2.2.0 abc")
	tests := []struct {
		name    string
		files   map[string]string
		opts    Options
		args    []string
		want    string
		restart []string
	}{
		{name: "ctr", files: map[string]string{configTOML: criSet}, want: "ctr images pull --hosts-dir /etc/containerd/certs.d"},
		{name: "detected", files: map[string]string{configTOML: criSet}, want: "found containerd by "},
		{name: "own directory", files: map[string]string{configTOML: criSet, hubHosts: hubBefore}, want: "docker.io have directories of their own"},
		{name: "explicit directory", files: map[string]string{configTOML: "version = 2\n"}, args: []string{"--config-path", "/c"}, want: "config_path = \"/c\""},
		{name: "read elsewhere", files: map[string]string{configTOML: criSet}, args: []string{"--config-path", "/c"}, want: "not /c"},
		{name: "cri disabled", files: map[string]string{configTOML: "version = 2\ndisabled_plugins = [\"cri\"]\n"}, want: "switched off"},
		{name: "2.2 default", files: map[string]string{configTOML: "version = 3\n", "/etc/docker/certs.d/a.b/ca.crt": "x"}, opts: Options{ContainerdVersion: v22}, want: "comes before everything in /etc/docker/certs.d"},
		{name: "2.2 drop-in", files: map[string]string{configTOML: "version = 3\n", "/etc/containerd/conf.d/r.toml": "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/c'\n"}, opts: Options{ContainerdVersion: v22}, want: "--hosts-dir /c"},
		{name: "edited config", files: map[string]string{configTOML: "version = 2\n"}, args: []string{"--edit-config"}, want: "does not answer", restart: []string{restartContainerd}},
		{name: "docker", files: map[string]string{daemonJSON: "{}"}, want: "docker.io only", restart: []string{"systemctl reload docker"}},
		{name: "podman", files: map[string]string{"/usr/bin/podman": ""}, want: "~/.config/containers"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := newRoot(t, tt.files)
			rep := runJSON(t, tt.opts, append([]string{"setup", "--root", root}, tt.args...)...)
			if notes := strings.Join(rep.Notes, "\n"); !strings.Contains(notes, tt.want) {
				t.Errorf("notes have no %q:\n%s", tt.want, notes)
			}
			if !slices.Equal(rep.Restart, append([]string{}, tt.restart...)) {
				t.Errorf("restart %q, want %q", rep.Restart, tt.restart)
			}
		})
	}
}

func TestTextOutput(t *testing.T) {
	root := newRoot(t, map[string]string{daemonJSON: "{}"})
	got := mustRun(t, Options{}, "setup", "--root", root)
	want := fmt.Sprintf(`docker: %s/etc/docker/daemon.json: written (docker.io)
mirror 127.0.0.1:65001 does not answer: Get "http://127.0.0.1:65001/v2/": connection refused
to restart: systemctl reload docker
note: Docker asks the mirror for docker.io only; pulls from other registries go straight to them
note: the mirror does not answer; until it does, pulls go to the upstream registries
note: found docker by %s/etc/docker/daemon.json
`, root, root)
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestPermissionNamesPathAndSudo(t *testing.T) {
	root := newRoot(t, map[string]string{daemonJSON: "{}"})
	n := testNode(root)
	n.disk.step = func(op, path string) error {
		if op == "mkdir" {
			return &fs.PathError{Op: op, Path: path, Err: fs.ErrPermission}
		}
		return nil
	}
	_, err := n.setup(t.Context(), request{runtime: docker, mirror: deadMirror})
	err = (&flags{}).explain(err)
	if err == nil || !strings.Contains(err.Error(), filepath.Join(root, stateDir)) || !strings.Contains(err.Error(), "sudo") {
		t.Errorf("error %v, want the path and sudo", err)
	}
}

// A setup that fails before anything is on record leaves nothing behind.
func TestFailedSetupLeavesNothing(t *testing.T) {
	root := t.TempDir()
	put(t, root, daemonJSON, "{}")
	original := snapshot(t, root)
	n := testNode(root)
	errFull := errors.New("disk full")
	n.disk.step = func(op, path string) error {
		if op == "create" && strings.Contains(path, "state.json") {
			return errFull
		}
		return nil
	}
	if _, err := n.setup(t.Context(), request{runtime: docker, mirror: deadMirror}); !errors.Is(err, errFull) {
		t.Fatalf("error %v, want %v", err, errFull)
	}
	diff(t, "after failed setup", snapshot(t, root), original)
}

func TestLockKeepsOthersOut(t *testing.T) {
	root := newRoot(t, map[string]string{daemonJSON: "{}"})
	mustRun(t, Options{}, "setup", "--root", root)
	release, err := lock(&disk{root: root})
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"remove", "--root", root}, {"setup", "--root", root, "--mirror", deadMirror}} {
		if _, err := run(t, Options{}, args...); err == nil || !strings.Contains(err.Error(), "another dfctl node command") {
			t.Errorf("%s beside another command: %v", args[0], err)
		}
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	mustRun(t, Options{}, "remove", "--root", root)
}

func TestDamagedBackupIsNotRestored(t *testing.T) {
	root := newRoot(t, map[string]string{daemonJSON: "{\"debug\": true}"})
	mustRun(t, Options{}, "setup", "--root", root)
	backups, err := filepath.Glob(filepath.Join(root, backupDir, "*"))
	if err != nil || len(backups) != 1 {
		t.Fatalf("backups %v, %v", backups, err)
	}
	if err := os.WriteFile(backups[0], []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, root)
	if _, err := run(t, Options{}, "remove", "--root", root); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("remove: %v", err)
	}
	diff(t, "after refused remove", snapshot(t, root), before)
}

func TestParseRelease(t *testing.T) {
	for out, want := range map[string]release{
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3": {1, 6},
		"containerd github.com/containerd/containerd/v2 v2.1.5 fcd43222":              {2, 1},
		"containerd containerd.io 1.7.24 88bf19b":                                     {1, 7},
		"": {},
	} {
		if got := parseRelease(out); got != want {
			t.Errorf("parseRelease(%q) = %v, want %v", out, got, want)
		}
	}
}
