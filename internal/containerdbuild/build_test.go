package containerdbuild_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/internal/containerdbuild"
	"github.com/damselfly-io/damselfly/internal/testenv"
)

func TestBuild(t *testing.T) {
	testenv.Integration(t)
	for _, release := range containerdbuild.Releases() {
		t.Run(string(release), func(t *testing.T) {
			programs, err := containerdbuild.Build(t.Context(), release)
			if err != nil {
				t.Fatal(err)
			}
			shim := filepath.Join(programs.Dir, "containerd-shim-runc-v2")
			for _, args := range [][]string{{programs.Containerd, "--version"}, {programs.Ctr, "--version"}, {shim, "-v"}} {
				out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput()
				if err != nil || !strings.Contains(string(out), " "+string(release)+".") && args[0] != shim {
					t.Errorf("%s: %v, %s", args[0], err, out)
				}
			}
			if env := programs.Env(); !strings.HasPrefix(env[len(env)-1], "PATH="+programs.Dir+":") {
				t.Errorf("environment ends with %s", env[len(env)-1])
			}
		})
	}
}

func TestBuildOfUnknownRelease(t *testing.T) {
	testenv.Integration(t)
	if _, err := containerdbuild.Build(t.Context(), "0.0"); err == nil || !strings.Contains(err.Error(), "build containerd 0.0") {
		t.Errorf("got %v", err)
	}
}
