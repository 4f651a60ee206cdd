package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	apiv1 "github.com/damselfly-io/damselfly/api/v1"
	"github.com/damselfly-io/damselfly/chunkfmt/trust"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/exit"
	"github.com/damselfly-io/damselfly/cmd/dfctl/internal/output"
)

func (d *doctor) daemons(ctx context.Context) {
	if d.dfdaemon(ctx) {
		const remedy = "restart dfdaemon; if it is older than the snapshotter, update it"
		d.socket(ctx, "dfdaemon's registry", "unix", beside(d.daemon.Socket, "-http"), Problem,
			"the snapshotter finds no index: all images are pulled whole", remedy)
		d.socket(ctx, "dfdaemon as holder", "unixpacket", beside(d.daemon.Socket, "-fds"), Warning,
			"without systemd, readers are let go with errors when snapshotter and keeper die together", remedy)
	}
	d.snapshotter(ctx)
	d.socket(ctx, "keeper", "unixpacket", d.keeper, Problem,
		"new images are pulled whole, and readers get errors when the snapshotter dies", "systemctl start damselfly-keeper, or run: snapshotter keeper")
}

// unreachable is the finding for a daemon that does not answer.
func unreachable(check string, err error, meaning string) Finding {
	if code, _ := exit.Code(err); code == exit.Refused || errors.Is(err, os.ErrPermission) {
		return needsRoot(check)
	}
	what, remedy, _ := strings.Cut(err.Error(), "; ")
	return Finding{Check: check, Status: Problem, Found: what, Meaning: meaning, Remedy: remedy}
}

// dfdaemon reports whether it answers.
func (d *doctor) dfdaemon(ctx context.Context) bool {
	const check, supernode = "dfdaemon", "supernode"
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := d.daemon.Dial(ctx)
	var info *apiv1.InfoResponse
	if err == nil {
		defer c.Close() //nolint:errcheck // it was only asked
		info, err = c.Info(ctx, &apiv1.InfoRequest{})
		err = c.Explain(ctx, "ask dfdaemon", err)
	}
	if err != nil {
		d.report.add(unreachable(check, err, "this node is not in the swarm, and lazy images get no content that is not here yet"))
		return false
	}
	d.report.add(ok(check, "answers at %s: version %s, node %s", d.daemon.Socket, info.Version, info.Name))
	if info.Connected {
		d.report.add(ok(supernode, "connected, %s to sign indexes", output.Count(len(info.TrustKeys), "key")))
		return true
	}
	d.report.add(Finding{
		Check: supernode, Status: Problem, Found: "dfdaemon is not connected to a supernode",
		Meaning: "this node fetches everything from the registries itself, and learns nothing from other nodes",
		Remedy:  "see why: curl http://127.0.0.1:65003/readyz, and dfdaemon's log; check its supernode and join-token-file",
	})
	return true
}

func (d *doctor) snapshotter(ctx context.Context) {
	const check = "snapshotter"
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := d.lazy.Dial(ctx)
	var resp *apiv1.ListImagesResponse
	if err == nil {
		defer c.Close() //nolint:errcheck // it was only asked
		resp, err = c.ListImages(ctx, &apiv1.ListImagesRequest{})
		err = c.Explain(ctx, "ask the snapshotter", err)
	}
	if err != nil {
		d.report.add(unreachable(check, err, "no container starts from its images, and readers of lazy images wait"))
		return
	}
	mounts, pulled := 0, 0
	for _, im := range resp.Images {
		mounts += len(im.Mounts)
		if im.Reason != "" {
			pulled++
		}
	}
	d.report.add(ok(check, "answers at %s: backend %s, %s, %s asked for that could not be lazy", d.lazy.Socket, resp.Backend, output.Count(mounts, "mount"), output.Count(pulled, "image")))
	d.files(ctx)
}

// wantFiles is what the snapshotter can use: its unit has more.
const wantFiles = 65536

// files looks at how many files the snapshotter may have open.
func (d *doctor) files(ctx context.Context) {
	const check = "open files"
	pid, err := d.system.Dial(ctx, "unix", d.lazy.Socket)
	if err != nil || pid <= 0 {
		d.report.add(Finding{Check: check, Status: Unknown, Found: "the snapshotter's process cannot be told from here", Meaning: "its limit for open files is not known"})
		return
	}
	n, err := d.system.openFiles(pid)
	switch {
	case errors.Is(err, os.ErrPermission):
		d.report.add(needsRoot(check))
	case err != nil:
		d.report.add(Finding{Check: check, Status: Unknown, Found: err.Error(), Meaning: "the snapshotter's limit for open files is not known"})
	case n < wantFiles:
		d.report.add(Finding{
			Check: check, Status: Warning, Found: fmt.Sprintf("the snapshotter may open %d files", n),
			Meaning: "each lazy layer takes a few: a node with many images runs out of them", Remedy: "set LimitNOFILE=1048576 in its unit, or raise the hard limit (ulimit -Hn) before it starts",
		})
	default:
		d.report.add(ok(check, "the snapshotter may open %d", n))
	}
}

// socket looks whether somebody listens.
func (d *doctor) socket(ctx context.Context, check, network, path string, bad Status, meaning, remedy string) {
	_, err := d.system.Dial(ctx, network, path)
	switch {
	case err == nil:
		d.report.add(ok(check, "answers at %s", path))
	case errors.Is(err, os.ErrPermission):
		d.report.add(needsRoot(check))
	case errors.Is(err, os.ErrNotExist):
		d.report.add(Finding{Check: check, Status: bad, Found: "there is no socket " + path, Meaning: meaning, Remedy: remedy})
	default:
		d.report.add(Finding{Check: check, Status: bad, Found: err.Error(), Meaning: meaning, Remedy: remedy})
	}
}

func (d *doctor) policy() {
	const check = "trust policy"
	file := d.trust
	if file == "" {
		if !d.system.Exists(defaultTrust) {
			d.report.add(ok(check, "there is none: indexes count that an image's manifest binds, or the supernode has signed"))
			return
		}
		file = defaultTrust
	}
	_, err := trust.LoadPolicy(file)
	switch {
	case err == nil:
		d.report.add(ok(check, "%s can be used", file))
	case errors.Is(err, os.ErrPermission):
		d.report.add(needsRoot(check))
	default:
		d.report.add(Finding{
			Check: check, Status: Problem, Found: err.Error(),
			Meaning: "the snapshotter does not start with it, or finds no index once it is changed so", Remedy: "correct " + file + ": docs/trust.md",
		})
	}
}

// units are what a node has; the names are those of deploy/systemd.
var units = []string{"damselfly-dfdaemon", "damselfly-keeper", "damselfly-snapshotter"}

func (d *doctor) units(ctx context.Context) {
	const check = "systemd units"
	if !d.system.Exists("/run/systemd/system") {
		d.report.add(ok(check, "this machine does not run systemd: see to it that the daemons are started again when they end"))
		return
	}
	var missing []string
	for _, unit := range units {
		// The exit code is not 0 for all but enabled ones, which the text tells.
		out, err := d.system.Run(ctx, "systemctl", "is-enabled", unit)
		state := strings.TrimSpace(out)
		if err != nil && state == "" {
			state = "not installed"
		}
		if !strings.HasPrefix(state, "enabled") && state != "alias" && state != "static" {
			missing = append(missing, unit+" is "+state)
		}
	}
	if len(missing) == 0 {
		d.report.add(ok(check, "%s are started at boot", strings.Join(units, ", ")))
		return
	}
	d.report.add(Finding{
		Check: check, Status: Warning, Found: strings.Join(missing, ", "),
		Meaning: "not all daemons are started at boot by these units, nor again when they end", Remedy: "install the units of deploy/systemd, and systemctl enable --now " + strings.Join(units, " "),
	})
}
