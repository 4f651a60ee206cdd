// Package testenv states what a test needs from the machine.
//
// A need that is not met skips the test and says what was missing. With
// DAMSELFLY_REQUIRE_ALL=1, as in continuous integration, it fails the test
// instead, so that a green run there means that every test ran.
//
// Tests that run other programs or need root call Integration first; they are
// skipped unless DAMSELFLY_INTEGRATION=1 (which DAMSELFLY_REQUIRE_ALL=1
// implies), so that a plain "go test ./..." touches nothing outside the test's
// own process and directories.
package testenv

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	requireAll  = "DAMSELFLY_REQUIRE_ALL"
	integration = "DAMSELFLY_INTEGRATION"
)

// missing ends a test whose need is not met.
func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if os.Getenv(requireAll) == "1" {
		t.Fatalf("%s, and %s=1 forbids skipping", reason, requireAll)
	}
	t.Skip(reason)
}

// Integration requires that integration tests were asked for.
func Integration(t testing.TB) {
	t.Helper()
	if os.Getenv(integration) != "1" && os.Getenv(requireAll) != "1" {
		t.Skipf("integration test: set %s=1 to run it", integration)
	}
}

// Root requires the test to run as root.
func Root(t testing.TB) {
	t.Helper()
	if uid := os.Geteuid(); uid != 0 {
		missing(t, "needs root, runs as uid %d", uid)
	}
}

// Tool requires a program in PATH and returns its path.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, "needs the program %s: %v", name, err)
	}
	return path
}

// Kernel requires at least the given release of Linux.
func Kernel(t testing.TB, major, minor int) {
	t.Helper()
	release, err := kernelRelease()
	if err != nil {
		missing(t, "needs Linux %d.%d: %v", major, minor, err)
	}
	var gotMajor, gotMinor int
	if _, err := fmt.Sscanf(release, "%d.%d", &gotMajor, &gotMinor); err != nil {
		missing(t, "needs Linux %d.%d, cannot read release %q", major, minor, release)
	}
	if gotMajor < major || gotMajor == major && gotMinor < minor {
		missing(t, "needs Linux %d.%d, runs on %s", major, minor, release)
	}
}

func kernelRelease() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("read kernel release: %w", err)
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

// Netns creates a network namespace whose loopback device is up, deletes it
// when the test ends, and returns its name. It requires root and ip(8).
func Netns(t testing.TB) string {
	t.Helper()
	Root(t)
	ip := Tool(t, "ip")
	name := "damselfly-test-" + rand.Text()[:10]
	if err := run(t, ip, "netns", "add", name); err != nil {
		missing(t, "needs network namespaces: %v", err)
	}
	t.Cleanup(func() {
		// t.Context has ended by now.
		if out, err := exec.Command(ip, "netns", "delete", name).CombinedOutput(); err != nil { //nolint:noctx // must run after the test's context ended
			t.Errorf("delete network namespace %s: %v: %s", name, err, out)
		}
	})
	if err := run(t, ip, "-netns", name, "link", "set", "lo", "up"); err != nil {
		t.Fatalf("bring up loopback in %s: %v", name, err)
	}
	return name
}

func run(t testing.TB, name string, args ...string) error {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, bytes.TrimSpace(out))
	}
	return nil
}
