// Package coldcache makes a machine forget files, and file systems that are
// mounted below a directory, so that a measurement begins without them. It needs
// root.
package coldcache

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Drop writes all files to disk and drops the machine's caches of files, names
// and inodes. What a process has mapped stays.
func Drop() error {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0o200); err != nil {
		return fmt.Errorf("drop the page cache: %w", err)
	}
	return nil
}

// Warm reads files, and all files below directories, into the page cache.
func Warm(paths ...string) error {
	for _, path := range paths {
		err := filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			return read(path)
		})
		if err != nil {
			return fmt.Errorf("read into the page cache: %w", err)
		}
	}
	return nil
}

func read(path string) error {
	f, err := os.Open(path) // #nosec G304 -- the caller's
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	_, err = io.Copy(io.Discard, f)
	return err
}

// Unmount detaches what is mounted at or below dir, an absolute path, the last
// mount first. Open files in it go on.
func Unmount(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("look for mounts: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	points, err := below(f, dir)
	if err != nil {
		return fmt.Errorf("look for mounts: %w", err)
	}
	var errs []error
	for _, point := range points {
		// It may have gone with another.
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// below returns the mount points of a mountinfo that are dir or below it, the
// last first. The fifth field of a line is the mount point.
func below(mountinfo io.Reader, dir string) ([]string, error) {
	var points []string
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20) // an overlay's options name all its layers
	for lines.Scan() {
		const mountPoint = 4
		fields := strings.Fields(lines.Text())
		if len(fields) <= mountPoint {
			return nil, fmt.Errorf("unexpected line %q", lines.Text())
		}
		point := unescape.Replace(fields[mountPoint])
		if point == dir || strings.HasPrefix(point, strings.TrimSuffix(dir, "/")+"/") {
			points = append(points, point)
		}
	}
	slices.Reverse(points)
	return points, lines.Err()
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
