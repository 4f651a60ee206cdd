package containerd

import (
	"bytes"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/damselfly-io/damselfly/internal/containerdbuild"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

// release is a containerd and the configuration that is for it.
type release struct {
	name, config string
	// exports: kubelet learns where the snapshots are.
	exports bool
	// transfer: ctr pulls by the transfer service, with annotations.
	transfer bool
}

var releases = []release{
	{name: "1.6", config: "containerd-1.6.toml"},
	{name: "1.7", config: "containerd-1.7.toml", exports: true},
	{name: "2.3", config: "containerd-2.toml", exports: true, transfer: true},
	{name: "2.4", config: "containerd-2.toml", exports: true, transfer: true},
}

// programs returns the daemon and the client of a release.
func (r release) programs(t *testing.T) (daemon, ctr string) {
	t.Helper()
	if r.name != "1.6" {
		p, err := containerdbuild.Build(t.Context(), containerdbuild.Release(r.name))
		if err != nil {
			t.Fatal(err)
		}
		return p.Containerd, p.Ctr
	}
	daemon, ctr = testenv.Tool(t, "containerd"), testenv.Tool(t, "ctr")
	if out, err := exec.CommandContext(t.Context(), daemon, "--version").Output(); err != nil || !bytes.Contains(out, []byte(" 1.6.")) {
		t.Skipf("the installed containerd is not 1.6: %s", out)
	}
	return daemon, ctr
}

// TestConfigs starts each containerd with its configuration, and pulls an image
// whose layers the snapshotter must be asked for, with the labels that lead to
// the image's index.
func TestConfigs(t *testing.T) {
	testenv.Integration(t)
	testenv.Root(t)
	for _, r := range releases {
		t.Run(r.name, func(t *testing.T) {
			c := startContainerd(t, r)
			c.checkPlugins(t)
			ref, manifest := c.push(t, "cri")
			c.pullByCRI(t, ref)
			c.checkLabels(t, ref, manifest)
			if r.exports {
				c.checkExports(t)
			}
			if r.transfer {
				ref, manifest := c.push(t, "transfer")
				c.must(t, "images", "pull", "--hosts-dir", c.hosts, "--snapshotter", "damselfly", ref)
				c.checkLabels(t, ref, manifest)
			}
		})
	}
}

// process is a containerd with a snapshotter and a registry of the test's own.
type process struct {
	ctr, dir, socket, hosts string
	registry                string // HOST:PORT
	recorder                *recorder
	conn                    *grpc.ClientConn
}

const own = `version = %d
root = %q
state = %q
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
  address = %q
[ttrpc]
  address = %q
`

// paths are what the configurations name, and the tests have elsewhere.
var paths = map[string]string{
	"/run/damselfly/snapshotter.sock": "s.sock",
	"/var/lib/damselfly/snapshotter":  "snapshots",
	"/etc/containerd/certs.d":         "certs.d",
}

// write writes the configuration with the paths of the test. Each of them must be
// in it, the data-dir only if it is exported.
func (c *process) write(t *testing.T, r release) string {
	t.Helper()
	b, err := os.ReadFile(r.config)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for path, to := range paths {
		quoted := fmt.Sprintf("%q", path)
		if !strings.Contains(text, quoted) && (r.exports || to != "snapshots") {
			t.Errorf("%s does not name %s", r.config, quoted)
		}
		text = strings.ReplaceAll(text, quoted, fmt.Sprintf("%q", filepath.Join(c.dir, to)))
	}
	text = strings.ReplaceAll(text, "linux/amd64", "linux/"+runtime.GOARCH)
	var version int
	for line := range strings.Lines(text) {
		if n, err := fmt.Sscanf(line, "version = %d\n", &version); n == 1 && err == nil {
			text = strings.Replace(text, line, "", 1)
			break
		}
	}
	file := filepath.Join(c.dir, "config.toml")
	head := fmt.Sprintf(own, version, filepath.Join(c.dir, "root"), filepath.Join(c.dir, "state"), c.socket, c.socket+".ttrpc")
	if err := os.WriteFile(file, []byte(head+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func startContainerd(t *testing.T, r release) *process {
	t.Helper()
	daemon, ctr := r.programs(t)
	dir, err := os.MkdirTemp("", "dfcd-") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	c := &process{ctr: ctr, dir: dir, socket: filepath.Join(dir, "c.sock"), hosts: filepath.Join(dir, "certs.d")}
	c.recorder = startRecorder(t, filepath.Join(dir, "s.sock"), filepath.Join(dir, "snapshots"))
	c.startRegistry(t)
	c.run(t, daemon, c.write(t, r))
	c.conn, err = grpc.NewClient("unix:"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.conn.Close() })
	return c
}

// run runs containerd until the test ends.
func (c *process) run(t *testing.T, daemon, config string) {
	t.Helper()
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(daemon, "--config", config, "--log-level", "info")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // whoever reads the log knows why
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
		_ = log.Close()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("containerd:\n%s", text[max(0, len(text)-8<<10):])
		}
	})
	testenv.Eventually(t, func() bool {
		select {
		case <-ended:
			t.Fatal("containerd has ended")
		default:
		}
		_, err := c.call(t, "version")
		return err == nil
	}, "containerd answers")
}

// startRegistry starts a registry that only hosts.toml leads to.
func (c *process) startRegistry(t *testing.T) {
	t.Helper()
	srv := httptest.NewServer(registry.New())
	t.Cleanup(srv.Close)
	c.registry = strings.TrimPrefix(srv.URL, "http://")
	dir := filepath.Join(c.hosts, "registry.test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("server = %[1]q\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", srv.URL)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o600); err != nil {
		t.Fatal(err)
	}
}

// push pushes a new image and returns its reference and the digest of its
// manifest.
func (c *process) push(t *testing.T, repository string) (ref, manifest string) {
	t.Helper()
	const layers, size = 2, 1000
	img, err := random.Image(size, layers)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	to, err := name.NewTag(c.registry+"/"+repository+":v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return "registry.test/" + repository + ":v1", digest.String()
}

func (c *process) call(t *testing.T, args ...string) (string, error) {
	out, err := exec.CommandContext(t.Context(), c.ctr, append([]string{"--address", c.socket}, args...)...).CombinedOutput()
	return string(out), err
}

func (c *process) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.call(t, args...)
	if err != nil {
		t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// checkPlugins fails unless the snapshotter and CRI are loaded.
func (c *process) checkPlugins(t *testing.T) {
	t.Helper()
	missing := map[string]bool{"io.containerd.snapshotter.v1 damselfly ok": true, "io.containerd.grpc.v1 cri ok": true}
	list := c.must(t, "plugins", "ls")
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) >= 3 {
			delete(missing, strings.Join([]string{f[0], f[1], f[len(f)-1]}, " "))
		}
	}
	if len(missing) > 0 {
		t.Fatalf("not loaded: %v\n%s", missing, list)
	}
}

// pullByCRI asks CRI to pull, as kubelet does. PullImageRequest has an ImageSpec as
// its first field, and that the reference as its first.
func (c *process) pullByCRI(t *testing.T, ref string) {
	t.Helper()
	spec, err := proto.Marshal(wrapperspb.String(ref))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.conn.Invoke(t.Context(), "/runtime.v1.ImageService/PullImage", wrapperspb.Bytes(spec), &wrapperspb.StringValue{}); err != nil {
		t.Fatalf("pull by CRI: %v", err)
	}
}

// checkExports fails unless CRI tells kubelet that images are in the snapshotter's
// directory.
func (c *process) checkExports(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, func() bool {
		answer := &wrapperspb.BytesValue{} // the first field's bytes hold the path
		err := c.conn.Invoke(t.Context(), "/runtime.v1.ImageService/ImageFsInfo", &emptypb.Empty{}, answer)
		return err == nil && bytes.Contains(answer.GetValue(), []byte(filepath.Join(c.dir, "snapshots")))
	}, "CRI says that images are in the snapshotter's directory")
}

// checkLabels fails unless the snapshotter got each layer of an image with what
// finding its index needs.
func (c *process) checkLabels(t *testing.T, ref, manifest string) {
	t.Helper()
	const prefix = "containerd.io/snapshot/cri."
	found := 0
	for _, labels := range c.recorder.all() {
		if labels[prefix+"image-ref"] != ref {
			continue
		}
		found++
		if labels[prefix+"manifest-digest"] != manifest {
			t.Errorf("manifest %q, want %q", labels[prefix+"manifest-digest"], manifest)
		}
		for _, key := range []string{prefix + "layer-digest", prefix + "image-layers", "containerd.io/snapshot.ref"} {
			if labels[key] == "" {
				t.Errorf("the label %s is missing among %v", key, maps.Clone(labels))
			}
		}
	}
	const layers = 2
	if found != layers {
		t.Errorf("the snapshotter was asked for %d layers of %s, want %d; it got %v", found, ref, layers, c.recorder.all())
	}
}
