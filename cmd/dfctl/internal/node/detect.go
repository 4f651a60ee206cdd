package node

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// signs are the paths whose presence shows a runtime: its configuration, its
// socket, and for Podman, which has no daemon, its program.
var signs = []struct {
	runtime string
	paths   []string
}{
	{containerd, []string{configTOML, defaultCerts, "/run/containerd/containerd.sock"}},
	{docker, []string{daemonJSON, "/run/docker.sock"}},
	{crio, []string{"/etc/crio/crio.conf", "/etc/crio/crio.conf.d", "/run/crio/crio.sock"}},
	{podman, []string{"/usr/bin/podman", "/run/podman/podman.sock"}},
}

// detect returns the one runtime of the node and what shows it.
func detect(d *disk) (name, found string, err error) {
	var hits []string
	for _, s := range signs {
		var seen []string
		for _, path := range s.paths {
			if _, err := os.Stat(d.abs(path)); err == nil {
				seen = append(seen, d.abs(path))
			}
		}
		if len(seen) > 0 {
			name, found = s.runtime, strings.Join(seen, ", ")
			hits = append(hits, fmt.Sprintf("%s (%s)", name, found))
		}
	}
	switch len(hits) {
	case 1:
		return name, found, nil
	case 0:
		return "", "", errors.New("found no container runtime: name one with --runtime " + strings.Join(runtimeNames, "|"))
	default:
		return "", "", fmt.Errorf("found more than one container runtime: %s; choose with --runtime", strings.Join(hits, ", "))
	}
}
