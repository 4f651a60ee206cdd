package lazymount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Start says what to run on top of a mounted image.
type Start struct {
	// Lower is where the image is mounted. Changes go below Work, an empty
	// directory on a file system that overlayfs can write to.
	Lower, Work string
	// Program and Dir are paths in the image.
	Program, Dir string
	Args, Env    []string
}

// Command returns a command that runs a program on a writable layer on top of a
// mounted image, in namespaces of its own for mounts and processes: when it ends,
// nothing of it is left but the files in Work. It confines nobody: what runs is
// root on this machine.
//
// helper is a command line that calls Enter with one more argument. It has to be
// another process that executes the program: while this one forks, Go's runtime
// may stop all its goroutines, and nobody would answer the kernel's reads of the
// program.
func (s *Start) Command(ctx context.Context, helper []string) (*exec.Cmd, error) {
	for _, dir := range []string{s.root(), s.upper(), s.scratch()} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make a root directory for the command: %w", err)
		}
	}
	spec, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	args := append(helper[1:len(helper):len(helper)], string(spec))
	cmd := exec.CommandContext(ctx, helper[0], args...)
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Second
	return cmd, nil
}

func (s *Start) root() string    { return filepath.Join(s.Work, "root") }
func (s *Start) upper() string   { return filepath.Join(s.Work, "upper") }
func (s *Start) scratch() string { return filepath.Join(s.Work, "scratch") }

// Enter is the helper's part of Command. It returns only if it fails.
func Enter(spec string) error {
	var s Start
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return fmt.Errorf("read what to run: %w", err)
	}
	if os.Getpid() != 1 {
		return errors.New("this is only for dfctl itself: use dfctl image trace")
	}
	if err := s.mount(); err != nil {
		return err
	}
	if err := unix.Chroot(s.root()); err != nil {
		return fmt.Errorf("enter the image: %w", err)
	}
	if err := unix.Chdir(s.Dir); err != nil {
		return fmt.Errorf("enter the image's working directory %s: %w", s.Dir, err)
	}
	return fmt.Errorf("run %s in the image: %w", s.Program, syscall.Exec(s.Program, s.Args, s.Env)) // #nosec G204 -- the user's command
}

// mount mounts what the program sees.
func (s *Start) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep the command's mounts apart: %w", err)
	}
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", escape(s.Lower), escape(s.upper()), escape(s.scratch()))
	if err := unix.Mount("overlay", s.root(), "overlay", unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		return fmt.Errorf("mount overlayfs on %s, with changes below %s: %w", s.Lower, s.Work, err)
	}
	err := s.at("proc", func(path string) error {
		return unix.Mount("proc", path, "proc", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "")
	})
	if err != nil {
		return err
	}
	return s.at("dev", mountDev)
}

// at calls f with the path of a directory right below the root. The directory is
// made if it is missing; what an image has put there must not lead elsewhere.
func (s *Start) at(name string, f func(path string) error) error {
	path := filepath.Join(s.root(), name)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make /%s for the command: %w", name, err)
	}
	fi, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("make /%s for the command: %w", name, err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("the image's /%s is no directory", name)
	}
	if err := f(path); err != nil {
		return fmt.Errorf("mount /%s for the command: %w", name, err)
	}
	return nil
}

// devices are what programs expect in /dev.
var devices = [...]string{"null", "zero", "full", "random", "urandom", "tty"}

// mountDev mounts a /dev with little in it.
func mountDev(path string) error {
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=1m"); err != nil {
		return err
	}
	for _, name := range devices {
		file := filepath.Join(path, name)
		if err := os.WriteFile(file, nil, 0o666); err != nil {
			return err
		}
		if err := unix.Mount("/dev/"+name, file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("/dev/%s: %w", name, err)
		}
	}
	for _, link := range [][2]string{{"/proc/self/fd", "fd"}, {"fd/0", "stdin"}, {"fd/1", "stdout"}, {"fd/2", "stderr"}} {
		if err := os.Symlink(link[0], filepath.Join(path, link[1])); err != nil {
			return err
		}
	}
	return nil
}
