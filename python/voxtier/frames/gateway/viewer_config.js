// Configuration of OHIF for this gateway: a data source for each of its sources, the first one by default.
const sources = ['default'];
window.config = {
  routerBasename: '/',
  extensions: [],
  modes: [],
  showStudyList: true,
  showLoadingIndicator: true,
  showWarningMessageForCrossOrigin: false,
  maxNumberOfWebWorkers: 3,
  defaultDataSourceName: sources[0],
  dataSources: sources.map((name, number) => {
    const root = number ? '/' + encodeURIComponent(name) + '/dicomweb' : '/dicomweb';
    return {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: name,
      configuration: {
        friendlyName: name,
        name,
        qidoRoot: root,
        wadoRoot: root,
        qidoSupportsIncludeField: true,
        supportsReject: false,
        supportsStow: false,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        omitQuotationForMultipartRequest: true,
        singlepart: 'bulkdata,video,pdf',
        bulkDataURI: { enabled: true, relativeResolution: 'studies' },
      },
    };
  }),
};
