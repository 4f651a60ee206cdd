package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

func (d *doctor) kernel() {
	const check = "kernel"
	name, err := d.system.Release()
	if err != nil {
		d.report.add(Finding{Check: check, Status: Unknown, Found: err.Error(), Meaning: "the release of the kernel is not known"})
		return
	}
	var major, minor int
	if _, err := fmt.Sscanf(name, "%d.%d", &major, &minor); err != nil {
		d.report.add(Finding{Check: check, Status: Unknown, Found: name, Meaning: "the release cannot be understood"})
		return
	}
	at := func(x, y int) bool { return major > x || major == x && minor >= y }
	f := ok(check, "Linux %s", name)
	switch {
	case at(6, 15):
	case at(6, 9):
		f.Status, f.Meaning = Warning, "EROFS with fanotify needs Linux 6.15: lazy images are mounted with FUSE, which is slower"
	case at(5, 1):
		f.Status, f.Meaning = Warning, "lazy images are mounted with FUSE, which is slower, and its mounts do not outlive the snapshotter before Linux 6.9"
	default:
		f.Status, f.Meaning = Problem, "lazy images need Linux 5.1"
	}
	if f.Status != OK {
		f.Remedy = "update the kernel to 6.15 or later"
	}
	d.report.add(f)
}

// fileSystems by the type that statfs gives.
var fileSystems = map[int64]string{
	0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x794c7630: "overlayfs", 0x01021994: "tmpfs", 0x6969: "NFS", 0x2fc12fc1: "ZFS",
}

func (d *doctor) disk() {
	const check = "data directory"
	dir := existing(d.dataDir)
	kind, free, err := d.system.Disk(dir)
	if err != nil {
		f := Finding{Check: check, Status: Unknown, Found: err.Error(), Meaning: "the file system of the snapshotter's data could not be looked at"}
		if errors.Is(err, os.ErrPermission) {
			f.Remedy = "run it with sudo"
		}
		d.report.add(f)
		return
	}
	name := fileSystems[kind]
	if name == "" {
		name = fmt.Sprintf("a file system of type %#x", kind)
	}
	f := ok(check, "%s is on %s, %s free", d.dataDir, name, output.Bytes(free))
	switch name {
	case "ext4", "xfs":
	case "overlayfs", "tmpfs":
		f.Status = Problem
		f.Meaning = "neither lazy images nor overlayfs work on it, or what is on it is in memory"
	default:
		f.Status = Warning
		f.Meaning = "it is not tested; the probes below say whether lazy images work on it"
	}
	if f.Status != OK {
		f.Remedy = "put the snapshotter's data-dir on ext4 or xfs; in a container, mount a volume there"
	}
	d.report.add(f)
}

// existing returns the nearest directory that is there.
func existing(dir string) string {
	for dir != "/" && dir != "." {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

func (d *doctor) backends(ctx context.Context) {
	const fanotifyCheck, erofsCheck = "fanotify", "EROFS"
	if !d.system.Root() {
		d.report.add(needsRoot(fanotifyCheck))
		d.report.add(needsRoot(erofsCheck))
		d.fuse(true)
		return
	}
	dir := existing(filepath.Join(d.dataDir, "devices"))
	slower := "lazy images are mounted with FUSE, which is slower"
	works := true
	probe := func(check, what, remedy string, f func(context.Context, string) error) {
		err := f(ctx, dir)
		if err == nil {
			d.report.add(ok(check, "%s", what))
			return
		}
		works = false
		d.report.add(Finding{Check: check, Status: Warning, Found: err.Error(), Meaning: slower, Remedy: remedy})
	}
	probe(fanotifyCheck, "reads of sparse files wait until they are filled", "use Linux 6.15 or later with CONFIG_FANOTIFY_ACCESS_PERMISSIONS, and a data-dir on ext4 or xfs", d.system.Fanotify)
	probe(erofsCheck, "images are mounted from files", "use Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE (modprobe erofs), and a data-dir on ext4 or xfs", d.system.EROFS)
	d.fuse(works)
}

// fuse is needed if the other backend does not work.
func (d *doctor) fuse(other bool) {
	const check = "FUSE"
	err := d.system.FUSE()
	switch {
	case err == nil:
		d.report.add(ok(check, "/dev/fuse can be opened"))
	case errors.Is(err, os.ErrPermission) && !d.system.Root():
		d.report.add(needsRoot(check))
	case other:
		d.report.add(Finding{
			Check: check, Status: Warning, Found: err.Error(),
			Meaning: "the FUSE backend and dfctl image mount do not work", Remedy: "modprobe fuse, or give the container /dev/fuse",
		})
	default:
		d.report.add(Finding{
			Check: check, Status: Problem, Found: err.Error(),
			Meaning: "no way of mounting lazy images works: all are pulled whole", Remedy: "modprobe fuse, or give the container /dev/fuse",
		})
	}
}

// enough is what a node with a thousand lazy layers takes.
const enough = 4096

func (d *doctor) limits() {
	const check = "fanotify limits"
	var found []string
	low := false
	for _, name := range []string{"max_user_groups", "max_user_marks"} {
		data, err := d.system.ReadFile("/proc/sys/fs/fanotify/" + name)
		if err != nil {
			d.report.add(Finding{Check: check, Status: Unknown, Found: err.Error(), Meaning: "the kernel's limits of fanotify are not known"})
			return
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(data)))
		found = append(found, fmt.Sprintf("fs.fanotify.%s = %s", name, strings.TrimSpace(string(data))))
		low = low || err == nil && n < enough
	}
	f := ok(check, "%s", strings.Join(found, ", "))
	if low {
		f.Status = Warning
		f.Meaning = "few lazy layers can be mounted; the snapshotter raises the limits when it starts, if it may"
		f.Remedy = "start the snapshotter, or set both to 65536 in /etc/sysctl.d"
	}
	d.report.add(f)
}
