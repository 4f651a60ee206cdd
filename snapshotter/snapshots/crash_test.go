package snapshots_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	cdsnapshots "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/damselfly-io/damselfly/internal/testenv"
	"github.com/damselfly-io/damselfly/snapshotter/snapshots"
)

// crashDir tells the test binary to be the process that is killed.
const crashDir = "DAMSELFLY_TEST_CRASH_DIR"

// TestKill kills a process that commits and removes lazy layers, at whatever it
// does, and looks at what the next one finds.
func TestKill(t *testing.T) {
	testenv.Integration(t)
	if dir := os.Getenv(crashDir); dir != "" {
		churn(t, dir)
		return
	}
	dir := t.TempDir()
	for round := range 8 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range 3 + 7*round {
			if !lines.Scan() {
				t.Fatalf("the process ended: %v", lines.Err())
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		checkAfterCrash(t, dir)
	}
}

// churn makes and removes snapshots until it is killed, and writes a line for each.
func churn(t *testing.T, dir string) {
	im := newImages(dir)
	im.all = true
	sn, err := snapshots.New(t.Context(), snapshots.Options{Root: dir + "/root", Images: im})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		id := digest.FromString(fmt.Sprint(i)).String()
		key := fmt.Sprintf("ns/%d/extract", i)
		_, err := sn.Prepare(t.Context(), key, "", cdsnapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": id}))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		if _, err := sn.Prepare(t.Context(), key, ""); err != nil && !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := sn.Remove(t.Context(), "lazy:"+id); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Println(i)
	}
}

func checkAfterCrash(t *testing.T, dir string) {
	t.Helper()
	im := newImages(dir)
	im.all = true
	sn, err := snapshots.New(t.Context(), snapshots.Options{Root: dir + "/root", Images: im})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sn.Close(); err != nil {
			t.Error(err)
		}
	}()
	count := 0
	err = sn.Walk(t.Context(), func(_ context.Context, info cdsnapshots.Info) error {
		count++
		lazy := info.Labels[snapshots.LabelRemote] != ""
		if lazy != (info.Kind == cdsnapshots.KindCommitted) || lazy != (info.Labels[labelIndex] != "") {
			t.Errorf("half made: %+v", info)
		}
		if lazy && !im.yes[info.Labels["containerd.io/snapshot.ref"]] {
			t.Errorf("not restored: %+v", info)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir + "/root/snapshots")
	if err != nil || len(entries) != count {
		t.Errorf("%d directories for %d snapshots: %v", len(entries), count, err)
	}
	if _, err := sn.Prepare(t.Context(), fmt.Sprintf("after/%d", count), ""); err != nil {
		t.Errorf("prepare after a crash: %v", err)
	}
}
