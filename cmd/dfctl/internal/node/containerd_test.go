package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// recorder stands in for dfdaemon's mirror: a registry that remembers what it
// was asked.
type recorder struct {
	http.Handler
	mu   sync.Mutex
	seen []*http.Request
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.seen = append(r.seen, req.Clone(context.WithoutCancel(req.Context())))
	r.mu.Unlock()
	r.Handler.ServeHTTP(w, req)
}

// take returns the requests since the last call.
func (r *recorder) take() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

func (r *recorder) push(t *testing.T, path, contentType string, body []byte) {
	t.Helper()
	method := http.MethodPut
	if strings.Contains(path, "/blobs/") {
		method = http.MethodPost
	}
	req := httptest.NewRequestWithContext(t.Context(), method, path, bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	r.Handler.ServeHTTP(w, req)
	if w.Code != http.StatusCreated {
		t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
}

// pushImage stores an image without layers, which is all a pull needs.
func (r *recorder) pushImage(t *testing.T, repo string) {
	t.Helper()
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(config))
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": []any{},
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "size": len(config), "digest": digest},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.push(t, "/v2/"+repo+"/blobs/uploads/?digest="+digest, "application/octet-stream", config)
	r.push(t, "/v2/"+repo+"/manifests/v1", "application/vnd.oci.image.manifest.v1+json", manifest)
}

// tool finds a program the test needs. Without it the test is skipped, unless
// the environment says that everything has to run.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		lacking(t, name+" is not installed")
	}
	return path
}

func lacking(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("DAMSELFLY_REQUIRE_ALL") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// startContainerd runs a containerd of the test's own and returns its socket.
func startContainerd(t *testing.T, certs string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		lacking(t, "containerd needs root")
	}
	bin := tool(t, "containerd")
	// The path of a Unix socket is short.
	dir, err := os.MkdirTemp("", "dfnode")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	sock := filepath.Join(dir, "c.sock")
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = %q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), sock, certs)
	put(t, dir, "config.toml", config)
	var logs bytes.Buffer
	cmd := exec.Command(bin, "--config", filepath.Join(dir, "config.toml"))
	cmd.Stdout, cmd.Stderr = &logs, &logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var ended error
	exited := make(chan struct{})
	go func() {
		ended = cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		// An error means that it has ended by itself.
		kill := time.AfterFunc(10*time.Second, func() { t.Log("kill containerd:", cmd.Process.Kill()) })
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Log("stop containerd:", err)
		}
		<-exited
		kill.Stop()
		if t.Failed() {
			t.Logf("containerd:\n%s", logs.String())
		}
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); ; {
		select {
		case <-exited:
			t.Fatalf("containerd ended: %v\n%s", ended, logs.String())
		case <-deadline:
			t.Fatal("containerd does not listen")
		case <-tick.C:
			if conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", sock); err == nil {
				_ = conn.Close()
				return sock
			}
		}
	}
}

// TestRealContainerd sets up the mirror for a running containerd, pulls
// through it without a restart, and pulls again after remove.
func TestRealContainerd(t *testing.T) {
	ctr := tool(t, "ctr")
	root := newRoot(t, map[string]string{configTOML: criSet})
	certs := filepath.Join(root, defaultCerts)
	sock := startContainerd(t, certs)
	rec := &recorder{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	rec.pushImage(t, "team/app")
	srv := httptest.NewServer(rec)
	defer srv.Close()
	mirror := strings.TrimPrefix(srv.URL, "http://")

	pull := func(ref string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, ctr, "--address", sock, "images", "pull",
			"--hosts-dir", certs, "--snapshotter", "native", ref).CombinedOutput()
		return string(out), err
	}
	second := &recorder{Handler: http.NotFoundHandler()}
	other := httptest.NewServer(second)
	defer other.Close()
	hosts := defaultCerts + "/example.test/hosts.toml"
	tests := []struct {
		name   string
		args   []string
		before string // hosts.toml of the registry before setup
	}{
		{name: "every registry"},
		{name: "one registry", args: []string{"--registry", "example.test"}},
		{name: "beside another mirror", args: []string{"--registry", "example.test"}, before: fmt.Sprintf("[host.%q]\n", other.URL)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.before != "" {
				put(t, root, hosts, tt.before)
			}
			original, args := snapshot(t, root), tt.args
			opts := Options{Client: srv.Client()}
			rep := runJSON(t, opts, append([]string{"setup", "--root", root, "--runtime", "containerd", "--mirror", mirror}, args...)...)
			if !rep.Health.OK || len(rep.Restart) != 0 {
				t.Errorf("report %+v", rep)
			}
			mustRun(t, opts, "status", "--root", root)
			rec.take()

			if out, err := pull("example.test/team/app:v1"); err != nil {
				t.Fatalf("pull through the mirror: %v\n%s", err, out)
			}
			if late := second.take(); len(late) != 0 {
				t.Errorf("the other mirror was asked for %s", late[0].URL)
			}
			seen := rec.take()
			if len(seen) == 0 {
				t.Fatal("the pull did not reach the mirror")
			}
			for _, req := range seen {
				if ns := req.URL.Query().Get("ns"); ns != "example.test" {
					t.Errorf("%s %s has ns %q", req.Method, req.URL, ns)
				}
			}

			mustRun(t, opts, "remove", "--root", root)
			diff(t, "after remove", snapshot(t, root), original)
			if out, err := pull("example.test/team/app:v1"); err == nil {
				t.Errorf("pull without the mirror came from somewhere:\n%s", out)
			}
			if seen := rec.take(); len(seen) != 0 {
				t.Errorf("after remove the mirror was asked for %s", seen[0].URL)
			}
			if tt.before != "" && len(second.take()) == 0 {
				t.Error("after remove the other mirror is not asked")
			}
		})
	}
}
