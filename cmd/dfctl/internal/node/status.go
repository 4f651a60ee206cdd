package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// ErrNotInForce is what node status returns, and with it a non-zero exit code,
// when the mirror is not set up, its configuration is not what setup wrote, or
// the mirror does not answer. The report has been printed by then.
var ErrNotInForce = errors.New("the mirror is not in force")

// probeTimeout is how long a mirror on this node may take to answer.
const probeTimeout = time.Second

// status reports what is in force for the given runtimes, or for all that are
// set up when there are none given.
func (n *node) status(ctx context.Context, runtimes []string) (*Report, error) {
	rep := &Report{Action: "status", OK: true}
	st, err := loadState(n.disk)
	if err != nil {
		return nil, err
	}
	var mirrors []string
	for _, r := range st.Files {
		if len(runtimes) > 0 && !slices.ContainsFunc(r.Runtimes, func(s string) bool { return slices.Contains(runtimes, s) }) {
			continue
		}
		cur, err := n.disk.read(r.Path)
		if err != nil {
			return nil, err
		}
		result := fileStatus(&r, cur)
		rep.OK = rep.OK && (result == resultInForce || result == resultEdited)
		rep.addFile(n.disk, r.Path, r.Runtimes, r.Registries, result)
		if r.Restart != "" {
			rep.restart(fmt.Sprintf("%s, unless done since %s", r.Restart, r.WrittenAt.Local().Format(time.DateTime)))
		}
		mirrors = append(mirrors, r.Mirror)
	}
	if len(rep.Files) == 0 {
		rep.OK = false
		rep.note("nothing is set up: run dfctl node setup")
		return rep, nil
	}
	if slices.Contains(rep.Runtimes, containerd) {
		n.statusContainerd(ctx, rep, st)
	}
	slices.Sort(mirrors)
	for _, rep.Mirror = range slices.Compact(mirrors) {
		if rep.Health = n.probe(ctx, rep.Mirror); !rep.Health.OK {
			rep.OK = false
			break
		}
	}
	return rep, nil
}

// fileStatus says how a recorded file stands.
func fileStatus(r *record, cur file) string {
	if !cur.Exists {
		return resultGone
	}
	if digest(cur.Data) == r.Written {
		return resultInForce
	}
	if _, err := r.Part.cut(cur.Data); err == nil {
		return resultEdited
	}
	return resultLost
}

// statusContainerd checks that containerd looks where the files are.
func (n *node) statusContainerd(ctx context.Context, rep *Report, st *state) {
	p := &planner{disk: n.disk, state: st, version: n.version}
	data, err := n.disk.readThrough(configTOML)
	if err == nil {
		var cri criSettings
		if cri, err = p.readCRI(data, p.release(ctx)); err == nil {
			if why := criReads(cri, st); why != "" {
				rep.note("%s", why)
			}
			return
		}
	}
	rep.OK = false
	rep.note("%v", err)
}

// criReads says why Kubernetes pulls do not see the files, or nothing.
func criReads(cri criSettings, st *state) string {
	if cri.disabled {
		return fmt.Sprintf("the CRI plugin is switched off in %s; only nerdctl and ctr use the mirror", configTOML)
	}
	for _, r := range st.Files {
		if r.Part.Kind == kindHosts && !slices.ContainsFunc(cri.dirs, func(dir string) bool { return within(dir, r.Path) }) {
			return fmt.Sprintf("containerd's CRI plugin does not read %s (config_path is %q): Kubernetes pulls do not use it, only nerdctl and ctr when pointed at it", r.Path, cri.configPath)
		}
	}
	return ""
}

// probe asks the mirror whether it is there. A 401 is an answer too.
func (n *node) probe(ctx context.Context, mirror string) *Health {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	h := &Health{}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+mirror+"/v2/", nil)
	if err != nil {
		h.Detail = err.Error()
		return h
	}
	resp, err := n.client.Do(req)
	if err != nil {
		h.Detail = err.Error()
		return h
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	err = errors.Join(err, resp.Body.Close())
	h.Detail = resp.Status
	if err != nil {
		h.Detail += ": " + err.Error()
	}
	h.OK = err == nil && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized)
	return h
}
