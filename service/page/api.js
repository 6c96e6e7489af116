// Requests to the service. While it is busy they are retried, when its Retry-After says.

const PATIENCE = 20

export class Refused extends Error {
  constructor(status, detail) {
    super(detail)
    this.status = status
  }
}

/**
 * POST one photograph to /v1/segment with its `options`; returns the response, or throws Refused.
 * `waiting(seconds)` is called before each retry.
 */
export async function ask(file, options, { key = '', signal, waiting = () => {} } = {}) {
  for (let attempt = 0; ; attempt++) {
    const body = new FormData()
    body.append('image', file, file.name)
    const response = await fetch('v1/segment?' + new URLSearchParams(options), { method: 'POST', body, headers: signed(key), signal })
    if (response.ok) return response
    const pause = Number(response.headers.get('Retry-After'))
    if (!pause || attempt === PATIENCE) throw new Refused(response.status, await detailOf(response))
    waiting(pause)
    await paused(pause * 1000, signal)
  }
}

/** The models of the service, the default first; none where a key is needed that is not given. */
export async function models(key) {
  for (;;) {
    const response = await fetch('v1/models', { headers: signed(key) })
    if (response.ok) return response.json()
    const pause = Number(response.headers.get('Retry-After'))
    if (response.status !== 503 || !pause) return []
    await paused(pause * 1000)
  }
}

function signed(key) {
  return key ? { Authorization: `Bearer ${key}` } : {}
}

async function detailOf(response) {
  try {
    return String((await response.json()).detail)
  } catch {
    return `the service answered ${response.status}`
  }
}

function paused(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds)
    signal?.addEventListener('abort', () => {
      clearTimeout(timer)
      reject(signal.reason)
    })
  })
}
