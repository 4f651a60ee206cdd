package fleet

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const module = "github.com/damselfly-io/damselfly"

// Programs of this module that Build builds.
const (
	Supernode = "supernode"
	Dfdaemon  = "dfdaemon"
)

// Build builds programs of this module into dir, in the way that `make build`
// does; each is then the file of its name in dir. It needs the go command and a
// working directory in the module.
func Build(ctx context.Context, dir string, programs ...string) error {
	args := []string{"build", "-trimpath", "-o", dir + string(filepath.Separator)}
	for _, p := range programs {
		args = append(args, module+"/cmd/"+p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the daemons: %w\n%s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
