package dfdaemon

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/damselfly-io/damselfly/dfdaemon/engine"
)

// metrics are the daemon's own; those of the process are in the registry.
type metrics struct {
	downloaded     *prometheus.CounterVec
	uploaded       prometheus.Counter
	rejected       *prometheus.CounterVec
	refused        prometheus.Counter
	originRequests *prometheus.CounterVec
	originBytes    prometheus.Counter
	served         *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vector := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		downloaded:     vector("damselfly_piece_download_bytes_total", "Bytes of verified pieces received, by sender; local: bytes served from the store without a download.", "from"),
		uploaded:       counter("damselfly_piece_upload_bytes_total", "Bytes of pieces sent to peers."),
		rejected:       vector("damselfly_piece_rejected_total", "Pieces and contents that were refused.", "reason"),
		refused:        counter("damselfly_ticket_refused_total", "Piece requests refused for want of a valid ticket."),
		originRequests: vector("damselfly_origin_requests_total", "Requests of this node to origins, by kind and by class of the answer (0: none came).", "kind", "class"),
		originBytes:    counter("damselfly_origin_bytes_total", "Bytes of bodies that this node received from origins."),
		served:         vector("damselfly_mirror_requests_total", "Answers of the registry mirror, by kind and status.", "kind", "status"),
	}
	for _, from := range []engine.From{engine.FromPeer, engine.FromSupernode, engine.FromOrigin, engine.FromLocal} {
		m.downloaded.WithLabelValues(string(from))
	}
	reg.MustRegister(m.downloaded, m.uploaded, m.rejected, m.refused, m.originRequests, m.originBytes, m.served)
	return m
}

func (m *metrics) received(from engine.From, n int64) {
	m.downloaded.WithLabelValues(string(from)).Add(float64(n))
}

func (m *metrics) origin(kind string, status int, bytes int64) {
	class := "0"
	if status >= http.StatusContinue {
		class = strconv.Itoa(status/100) + "xx"
	}
	m.originRequests.WithLabelValues(kind, class).Inc()
	m.originBytes.Add(float64(bytes))
}
