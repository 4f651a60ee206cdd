package images_test

import (
	"testing"
	"time"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/daemon"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/images"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/nodetest"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/outputtest"
	"github.com/damselfly-io/damselfly/internal/cli"
)

func TestInspectNode(t *testing.T) {
	u := newUser(t)
	l := nodetest.StartLazy(t)
	u.setup = func(con *outputtest.Console) { con.Env[daemon.EnvSnapshotter] = l.Socket }
	looked := outputtest.New("").Time.Add(-90 * time.Second).Unix()
	l.Images = []*apiv1.LazyImage{
		{Reference: "index.docker.io/library/app:v1", Manifest: "sha256:aa", TrustedBy: "signed by key 12", LookedUpUnix: looked, Mounts: []*apiv1.LazyMount{
			{Chain: "sha256:c1", Layers: 1, Backend: "erofs", Directory: "/d/1", PresentBytes: 1 << 10, TotalBytes: 4 << 10},
			{Chain: "sha256:c2", Layers: 2, Backend: "erofs", Directory: "/d/2", PresentBytes: 8 << 10, TotalBytes: 8 << 10},
		}},
		{Reference: "r.local/other:v1", Manifest: "sha256:bb", Reason: "no-index: it has none", LookedUpUnix: looked},
	}
	want := `image:       index.docker.io/library/app:v1
manifest:    sha256:aa
lazy:        yes
trusted by:  signed by key 12
looked up:   1m30s ago
LAYERS  BACKEND  PRESENT         OF       DIRECTORY
2       erofs    8.0 KiB (100%)  8.0 KiB  /d/2
1       erofs    1.0 KiB (25%)   4.0 KiB  /d/1
`
	for _, ref := range []string{"docker.io/library/app:v1", "library/app", "sha256:aa"} {
		if got := u.ok("inspect", "--node", ref); got != want {
			t.Errorf("%s: printed\n%swant\n%s", ref, got, want)
		}
	}
	contains(t, u.ok("inspect", "--node", "r.local/other:v1"), "lazy:       no: no-index: it has none\n")
	v := decode[images.NodeView](u, cli.ExitOK, "inspect", "--node", "r.local/other:v1")
	if len(v.Images) != 1 || v.Images[0].Lazy || v.Images[0].Mounts == nil || v.Backend != "erofs" {
		t.Errorf("printed %+v", v)
	}
	u.fails(exit.NotFound, "snapshotter does not know it", "inspect", "--node", "r.local/absent")
	u.fails(cli.ExitFailure, "snapshotter is not running: there is no socket /nowhere", "inspect", "--node", "--snapshotter", "/nowhere", "app")
}
