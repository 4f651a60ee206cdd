package debimage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Image says what to make.
type Image struct {
	Name string
	// Packages are the groups of Debian packages, one layer each.
	Packages [][]string
	// Command is the image's. Default: /bin/bash.
	Command []string
}

// Images are those that the benchmarks use, the one for which the project
// states its goals first.
func Images() []Image {
	return []Image{
		{"golang", [][]string{{"gcc", "g++", "libc6-dev", "make", "git", "ca-certificates"}, {"golang-go"}}, []string{"go", "version"}},
		{"node", [][]string{{"nodejs", "npm"}}, []string{"node", "--version"}},
		{"python", [][]string{{"python3", "python3-numpy", "python3-scipy"}}, []string{"python3", "--version"}},
	}
}

func (img Image) config() v1.Image {
	command := img.Command
	if len(command) == 0 {
		command = []string{"/bin/bash"}
	}
	return v1.Image{
		Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		Config: v1.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: command,
		},
	}
}

// suite is the Debian release of all images.
const suite = "bookworm"

// maker makes one image in a directory of its own.
type maker struct {
	// dir has what images share: the base system and finished layouts.
	dir string
	// work has what only this image needs; it is removed.
	work string
	log  func(string, ...any)
}

// Make returns the directory of the image's OCI layout (tag "latest") under
// dir, which is made if it is not there.
func Make(ctx context.Context, dir string, img Image, log func(string, ...any)) (string, error) {
	layout := filepath.Join(dir, img.Name)
	if _, err := os.Stat(filepath.Join(layout, "index.json")); err == nil {
		return layout, nil
	}
	if os.Geteuid() != 0 {
		return "", errors.New("making Debian images needs root")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(dir, "."+img.Name+"-")
	if err != nil {
		return "", err
	}
	m := &maker{dir: dir, work: work, log: log}
	err = m.make(ctx, img, layout)
	if err := errors.Join(err, os.RemoveAll(work)); err != nil {
		return "", fmt.Errorf("make image %s: %w", img.Name, err)
	}
	return layout, nil
}

func (m *maker) make(ctx context.Context, img Image, layout string) error {
	base, err := m.base(ctx)
	if err != nil {
		return err
	}
	w, err := newWriter(filepath.Join(m.work, "layout"), img.config())
	if err != nil {
		return err
	}
	m.log("packing the base of %s", img.Name)
	if err := w.layer(ctx, base, false); err != nil {
		return err
	}
	lowers := []string{base}
	for i, packages := range img.Packages {
		m.log("installing %s", strings.Join(packages, " "))
		upper := filepath.Join(m.work, fmt.Sprintf("upper%d", i))
		if err := m.install(ctx, lowers, upper, packages); err != nil {
			return err
		}
		if err := w.layer(ctx, upper, true); err != nil {
			return err
		}
		lowers = append(lowers, upper)
	}
	app := filepath.Join(m.work, "application")
	if err := writeApplication(app, img.Name); err != nil {
		return err
	}
	if err := w.layer(ctx, app, false); err != nil {
		return err
	}
	if err := w.finish(); err != nil {
		return err
	}
	return os.Rename(w.dir, layout)
}

func writeApplication(dir, name string) error {
	if err := os.MkdirAll(filepath.Join(dir, "app"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "app", "main.txt"), []byte("hello from "+name+"\n"), 0o644)
}

// base returns the directory of the base system, which all images share.
func (m *maker) base(ctx context.Context) (string, error) {
	base := filepath.Join(m.dir, ".base")
	if _, err := os.Stat(base); err == nil {
		return base, nil
	}
	m.log("installing the base system with debootstrap")
	fresh := filepath.Join(m.work, "base")
	if err := run(ctx, "debootstrap", "--variant=minbase", suite, fresh); err != nil {
		return "", err
	}
	return base, os.Rename(fresh, base)
}

// install runs apt in an overlay of lowers, lowest first, and leaves what it
// changed in upper.
func (m *maker) install(ctx context.Context, lowers []string, upper string, packages []string) (err error) {
	root, scratch := upper+".root", upper+".work"
	for _, d := range []string{upper, root, scratch} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	top := slices.Clone(lowers)
	slices.Reverse(top)
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(top, ":"), upper, scratch)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay at %s: %w", root, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(root, 0)) }()
	if err := copySources(ctx, root); err != nil {
		return err
	}
	proc := filepath.Join(root, "proc")
	if err := unix.Mount("proc", proc, "proc", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", proc, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(proc, 0)) }()
	apt := append([]string{root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", "--no-install-recommends"}, packages...)
	for _, args := range [][]string{
		{root, "apt-get", "update", "-q"},
		apt,
		{root, "sh", "-c", "apt-get clean && rm -rf /var/lib/apt/lists/*"},
	} {
		if err := run(ctx, "chroot", args...); err != nil {
			return err
		}
	}
	return nil
}

// copySources lets apt in root use what the machine uses.
func copySources(ctx context.Context, root string) error {
	for _, path := range []string{
		"/etc/resolv.conf", "/etc/hosts", "/etc/apt/.", "/usr/share/keyrings/.",
		"/usr/local/share/ca-certificates/.", "/etc/ssl/.",
	} {
		if _, err := os.Stat(path); err != nil {
			continue // not every machine has all of them
		}
		to := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := run(ctx, "cp", "-a", path, to); err != nil {
			return err
		}
	}
	return nil
}

// run runs a program and returns the end of what it printed if it fails.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out[max(0, len(out)-1000):])
	}
	return nil
}
