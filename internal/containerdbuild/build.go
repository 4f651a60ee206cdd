package containerdbuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Release is a minor release of containerd: a folder of tools/containerd.
type Release string

// The releases that can be built.
const (
	V1_7 Release = "1.7"
	V2_3 Release = "2.3"
	V2_4 Release = "2.4"
)

// Releases returns the releases that can be built, oldest first.
func Releases() []Release { return []Release{V1_7, V2_3, V2_4} }

// tags leave out snapshotters that link with other programs' headers or that
// nobody here uses.
const tags = "no_aufs no_btrfs no_devmapper no_zfs"

// Programs are the programs of one release.
type Programs struct {
	// Dir holds the programs. containerd finds its shim when Dir is the first
	// entry of PATH.
	Dir string
	// Containerd and Ctr are the paths of the daemon and its client.
	Containerd, Ctr string
}

// Env returns the environment that makes containerd find its own shim: this
// process's, with Dir in front of PATH.
func (p Programs) Env() []string {
	return append(os.Environ(), "PATH="+p.Dir+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// Build builds a release unless that has been done, and returns where it is. It
// needs the go command and a working directory in this module. Several
// processes may call it at the same time.
func Build(ctx context.Context, r Release) (Programs, error) {
	if !slices.Contains(Releases(), r) {
		return Programs{}, fmt.Errorf("build containerd %s: there is no module for this release", r)
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return Programs{}, fmt.Errorf("build containerd %s: %w", r, err)
	}
	dir := filepath.Join(root, "bin", "containerd-"+string(r))
	if err := build(ctx, filepath.Join(root, "tools", "containerd", string(r)), dir); err != nil {
		return Programs{}, fmt.Errorf("build containerd %s: %w", r, err)
	}
	return Programs{Dir: dir, Containerd: filepath.Join(dir, "containerd"), Ctr: filepath.Join(dir, "ctr")}, nil
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := output(exec.CommandContext(ctx, "go", "env", "GOMOD"))
	if err != nil {
		return "", err
	}
	file := strings.TrimSpace(out)
	if file == "" || file == os.DevNull {
		return "", errors.New("the working directory is in no module")
	}
	return filepath.Dir(file), nil
}

// build builds the tools of a module into dir.
func build(ctx context.Context, module, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// One at a time: another's go build would replace a file that is about to
	// be executed.
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // releases the lock; nothing was written
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", tags, "-o", dir+string(filepath.Separator), "tool")
	cmd.Dir = module
	// PWD as well: go trusts it to name the directory.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "PWD="+module)
	_, err = output(cmd)
	return err
}

// output runs a command and returns what it printed, or an error with what it
// complained about.
func output(cmd *exec.Cmd) (string, error) {
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(complaint.Bytes()))
	}
	return string(out), nil
}
