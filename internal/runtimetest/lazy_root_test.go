package runtimetest

import (
	"strings"
	"testing"

	"github.com/damselfly-io/damselfly/chunkfmt/trust"
)

// TestLazyWrongRoot pulls an image whose indexes are signed and have another Merkle
// root than the artifact says.
func TestLazyWrongRoot(t *testing.T) {
	needLazy(t)
	t.Parallel()
	site := newLazySite(t)
	key, err := trust.Load(site.key)
	if err != nil {
		t.Fatal(err)
	}
	n := site.cluster(t, clusterOptions{}).lazyNode(t, "node-1", lazyOptions{trust: site.trust})
	img := newTiny(t, "team/wrong-root")
	img.push(t, site.registry.url)
	dfctl(t, "image", "convert", site.local(img.image), "--no-sign")
	site.changeRoot(t, img)
	site.sign(t, img, key, func(data []byte) []byte { return data })
	n.mustPull(t, img.image)
	n.checkLazy(t, img, 0)
	if got := n.reason(t, img, 1); !strings.HasPrefix(got, "invalid") {
		t.Errorf("the reason is %q, want invalid", got)
	}
	n.greet(t, img.image)
}

func (s *lazySite) changeRoot(t *testing.T, img *lazyImage) {
	t.Helper()
	a := s.indexOf(t, img)
	a.Root[7] ^= 1
	s.putIndex(t, img, a)
}
