package supernode

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the supernode's own; those of the process are in the registry.
type metrics struct {
	originRequests *prometheus.CounterVec
	originBytes    prometheus.Counter
	uploaded       prometheus.Counter
	refused        prometheus.Counter
	quarantined    prometheus.Counter
	accelerations  *prometheus.CounterVec
	accelerateTime prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		originRequests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "damselfly_origin_requests_total", Help: "Requests to origins, by kind and by class of the answer (0: none came).",
		}, []string{"kind", "class"}),
		originBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_origin_bytes_total", Help: "Bytes of bodies received from origins.",
		}),
		uploaded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_piece_upload_bytes_total", Help: "Bytes of pieces sent to peers.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_ticket_refused_total", Help: "Piece requests refused for want of a valid ticket.",
		}),
		quarantined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "damselfly_quarantine_total", Help: "Peers quarantined for sending bad pieces.",
		}),
	}
	m.accelerations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "damselfly_accelerations_total", Help: "Conversions of images to lazy ones, by outcome.",
	}, []string{"outcome"})
	m.accelerateTime = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "damselfly_acceleration_seconds_total", Help: "Time that conversions took.",
	})
	reg.MustRegister(m.accelerations, m.accelerateTime)
	reg.MustRegister(m.originRequests, m.originBytes, m.uploaded, m.refused, m.quarantined)
	return m
}

// accelerated observes the end of one conversion.
func (m *metrics) accelerated(err error, took time.Duration) {
	outcome := "succeeded"
	if err != nil {
		outcome = "failed"
	}
	m.accelerations.WithLabelValues(outcome).Inc()
	m.accelerateTime.Add(took.Seconds())
}

// origin observes one exchange with an origin.
func (m *metrics) origin(kind string, status int, bytes int64) {
	class := "0"
	if status >= http.StatusContinue {
		class = strconv.Itoa(status/100) + "xx"
	}
	m.originRequests.WithLabelValues(kind, class).Inc()
	m.originBytes.Add(float64(bytes))
}
