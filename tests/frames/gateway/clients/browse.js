// Runs steps in one Chromium, each a file beside this one with a page of its own; prints what they saw as a JSON line.
// node browse.js MODULES BROWSER FOLDER STEPS, where STEPS is a JSON list of [file, arguments]; FOLDER takes pictures.
const [modules, browser, folder, steps] = process.argv.slice(2);
const { chromium } = require(modules + '/playwright-core');

// For the pages: values of pixels as whole numbers of 32 bits, in base 64.
const TO_BASE_64 = `window.toBase64 = values => {
  const bytes = new Uint8Array(Int32Array.from(values).buffer);
  let text = '';
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}`;

(async () => {
  const running = await chromium.launch({
    executablePath: browser,
    // Without a GPU: WebGL is drawn in software; the page is composed without it, in a small window, for less work.
    args: ['--no-sandbox', '--disable-gpu-compositing', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader'],
  });
  // One context, so that what a step fetched lies in the cache of the next.
  const context = await running.newContext({ viewport: { width: 640, height: 480 } });
  const seen = {};
  for (const [name, given] of JSON.parse(steps)) {
    const begun = Date.now();
    const page = await context.newPage();
    page.setDefaultTimeout(120000); // a busy machine is no defect
    const origins = [given.url, given.page].filter(Boolean);
    const common = { faults: [], outside: [], frames: new Set() };
    page.on('pageerror', error => common.faults.push(error.message));
    page.on('request', request => {
      if (!/^(data|blob):/.test(request.url()) && !origins.some(origin => request.url().startsWith(origin))) common.outside.push(request.url());
    });
    page.on('response', response => {
      if (response.status() >= 400) common.faults.push(response.status() + ' ' + response.url());
      if (response.status() === 200 && response.url().includes('/frames/')) common.frames.add(response.url());
    });
    await page.addInitScript(TO_BASE_64);
    const own = await require('./' + name + '.js')(page, given, folder, common.frames).catch(async error => {
      error.message += '\n' + await page.innerText('body') + '\n' + common.faults.join('\n');
      throw error;
    });
    seen[name] = { ...common, frames: common.frames.size, ...own, milliseconds: Date.now() - begun };
    await page.close();
  }
  console.log(JSON.stringify(seen));
  await running.close();
})().catch(error => { console.error(error); process.exit(1); });
